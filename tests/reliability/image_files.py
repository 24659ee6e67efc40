"""Image files of many kinds, with the picture that they show or the reason why they are refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (48, 32)  # width, height


def picture() -> np.ndarray:
    """A colour ramp, (32, 48, 3) uint8; left and right, top and bottom differ."""
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    return np.stack([x, y, 255 - x], axis=2).round().astype(np.uint8)


def encoded(image: Image.Image, form: str, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def readable() -> Iterator[tuple[str, bytes, np.ndarray, int]]:
    """Yield name, bytes, the picture (H, W, 3), and the largest difference that the format may make."""
    rgb = picture()
    image = Image.fromarray(rgb)
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    yield 'rgb.png', encoded(image, 'PNG'), rgb, 0
    for orientation, turned in (
        (3, np.rot90(rgb, 2)), (6, np.rot90(rgb)), (8, np.rot90(rgb, 3)), (2, rgb[:, ::-1]),
    ):  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(turned))
        yield f'exif_{orientation}.png', encoded(stored, 'PNG', exif=exif), rgb, 0
        yield f'exif_{orientation}.tif', encoded(stored, 'TIFF', exif=exif), rgb, 0
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.ascontiguousarray(np.rot90(rgb)))
    yield 'photo.JPG', encoded(photo, 'JPEG', exif=exif, quality=95), rgb, 24
    sixteen = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    yield 'grey_16.png', encoded(sixteen, 'PNG'), grey, 0
    yield 'grey_16.tif', encoded(sixteen, 'TIFF'), grey, 0
    white = encoded(sixteen, 'TIFF', tiffinfo={262: 0})
    yield 'white_is_0.tif', white, 255 - grey, 0
    yield 'float_1.tif', encoded(Image.fromarray(rgb[..., 0] / np.float32(255)), 'TIFF'), grey, 0
    yield (
        'float_255.tiff',
        encoded(Image.fromarray(rgb[..., 0].astype(np.float32)), 'TIFF'),
        grey,
        0,
    )
    yield 'grey.png', encoded(Image.fromarray(rgb[..., 0]), 'PNG'), grey, 0
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(rgb[..., 0]))
    yield 'alpha.png', encoded(alpha, 'PNG'), rgb, 0
    yield 'grey_alpha.png', encoded(Image.fromarray(rgb[..., 0]).convert('LA'), 'PNG'), grey, 0
    palette = image.quantize(64)
    shown = np.array(palette.convert('RGB'))
    yield 'palette.png', encoded(palette, 'PNG'), shown, 0
    yield 'transparent.png', encoded(palette, 'PNG', transparency=bytes(range(64))), shown, 0
    yield 'one_bit.png', encoded(Image.fromarray(rgb[..., 0] > 127), 'PNG'), 255 * (grey > 127), 0
    yield 'cmyk.jpg', encoded(image.convert('CMYK'), 'JPEG', quality=95), rgb, 40
    yield 'cmyk.tif', encoded(image.convert('CMYK'), 'TIFF'), rgb, 1
    frames = [Image.fromarray(np.full_like(rgb, 9)), Image.fromarray(np.full_like(rgb, 200))]
    animated = dict(save_all=True, append_images=frames)
    yield 'animated.gif', encoded(palette, 'GIF', **animated), shown, 0
    yield 'animated.webp', encoded(image, 'WEBP', lossless=True, **animated), rgb, 0
    yield 'pages.tif', encoded(image, 'TIFF', **animated), rgb, 0
    yield 'broken_exif.jpg', encoded(image, 'JPEG', exif=b'Exif\0\0broken', quality=95), rgb, 24


def huge_png() -> bytes:
    """A PNG whose header promises 20,000 x 20,000 pixels."""
    import zlib

    header = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(bytes(1000))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d)) for k, d in chunks
    )


def unreadable() -> Iterator[tuple[str, bytes, str]]:
    """Yield name, bytes, and a text of the message."""
    image = Image.fromarray(picture())
    whole = encoded(image, 'JPEG')
    values = picture()[..., 0].astype(np.float32)
    nan = values.copy()
    nan[3, 3] = np.nan
    yield 'empty.png', b'', 'cannot identify'
    yield 'text.png', b'hello', 'cannot identify'
    yield 'page.jpg', b'<!DOCTYPE html><html></html>', 'cannot identify'
    yield 'cut.jpg', whole[: len(whole) // 2], 'runcated'
    yield 'cut.png', encoded(image, 'PNG')[:-60], ''
    yield 'zeros.bmp', b'BM' + bytes(100), ''
    yield 'huge.png', huge_png(), 'exceeds limit'
    yield 'nan.tif', encoded(Image.fromarray(nan), 'TIFF'), 'its values range from nan'
    yield 'negative.tif', encoded(Image.fromarray(values - 9), 'TIFF'), 'range from -9 to 246'
    yield 'large.tif', encoded(Image.fromarray(values * 9), 'TIFF'), r'expected \[0, 1\] or'
    integers = Image.fromarray(picture()[..., 0].astype(np.int32) * 10_000)
    yield 'int32.tif', encoded(integers, 'TIFF'), r'expected \[0, 65535\]'


def write(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name
