"""Image files: find, choose and read them."""

from __future__ import annotations

import glob
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

__all__ = [
    'SUFFIXES',
    'UnreadableImageError',
    'choose',
    'class_folders',
    'find_images',
    'list_folder',
    'read_image',
    'read_size',
    'timm_transform',
]

SUFFIXES = (
    '.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif',
)  # fmt: skip
"""Endings of image files, in any case: torchvision's and GIF."""

_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF
_logger = logging.getLogger(__name__)
_said: set[str] = set()


class UnreadableImageError(ValueError):
    """An image file that cannot be read; the message names it."""

    def __init__(self, message: str):
        # torch re-raises a worker's error with the worker's traceback before the message
        super().__init__(message.rpartition('UnreadableImageError: ')[2].strip())


def read_image(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """Read a file as an (H, W, 3) uint8 array, RGB, upright by its EXIF orientation.

    Grey values of 16 bits are divided by 257, floating-point values in [0, 1] multiplied by 255 and
    those in [0, 255] rounded; the first such file is logged. An alpha channel is dropped. Of an
    animation the first frame is read.

    Args:
        path: The file.
        data: Its bytes, where they have been read already.

    Raises:
        UnreadableImageError: If the file is missing, truncated, not an image, larger than Pillow's limit
            (twice `PIL.Image.MAX_IMAGE_PIXELS`), or has values of another range.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            image.load()  # turns a TIFF
            if _orientation(image) != 1:
                return _to_rgb(ImageOps.exif_transpose(image), path)
            return _to_rgb(image, path)
    except Exception as error:  # Pillow's plugins raise errors of all kinds for broken files
        raise UnreadableImageError(f'cannot read the image {path}: {error}') from error


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the width and height of the array that `read_image` gives, from the header only.

    Raises:
        UnreadableImageError: As `read_image`, as far as the header shows.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size  # of a TIFF, turned
            turned = image.format != 'TIFF' and _orientation(image) >= 5
            return (height, width) if turned else (width, height)
    except Exception as error:
        raise UnreadableImageError(f'cannot read the image {path}: {error}') from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation: 1 is upright, from 5 on width and height are exchanged."""
    try:
        # the method of PNG files would decode the image
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # EXIF is broken more often than images are
        return 1
    return orientation if orientation in range(1, 9) else 1


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    """Convert any mode to (H, W, 3) uint8."""
    if image.mode == 'F' or image.mode.startswith('I'):
        values = np.asarray(image)
        tags = getattr(image, 'tag_v2', {})  # of a TIFF: Pillow scales no 12 bits, inverts no 16
        bits = min(tags.get(_BITS, (16,))[0], 16)
        factor = _factor(values, bits, path)
        if values.dtype.kind != 'f' and tags.get(_PHOTOMETRIC) == 0:  # white is 0
            values = 2**bits - 1 - values.astype(np.int64)
        grey = np.rint(values.astype(np.float32) * factor).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Palette images with Transparency')
        return np.array(image.convert('RGB'))


def _factor(values: np.ndarray, bits: int, path: str | Path) -> float:
    """Return the factor that maps values of 9 to 16 bits or floating point to [0, 255]."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == 'f':
        if low >= 0 and high <= 255:  # false for NaN
            kind, factor = ('[0, 1]', 255.0) if high <= 1 else ('[0, 255]', 1.0)
            _say_once(f'floating-point values of {kind}, times {factor:g}', path)
            return factor
        expected = '[0, 1] or [0, 255]'
    else:
        top = 2**bits - 1
        if low >= 0 and high <= top:
            _say_once(f'{bits} bits, divided by {top / 255:g}', path)
            return 255 / top
        expected = f'[0, {top}]'
    raise ValueError(
        f'its values range from {low:g} to {high:g}, expected {expected}; scale them, or save the image '
        'with 8 bits'
    )


def _say_once(how: str, path: str | Path) -> None:
    if how not in _said:
        _said.add(how)
        _logger.warning('images with %s, such as %s', how, path)


def _is_foreign(name: str) -> bool:
    """Return whether a file or folder is hidden or metadata of macOS."""
    return name.startswith('.') or name == '__MACOSX'


def list_folder(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """List the images in a folder and all below it, and the other files; links are followed.

    Hidden files and folders and `__MACOSX` are left out. A folder that several links lead to is listed
    once.

    Returns:
        Images and other files, each sorted by path.
    """
    images: list[Path] = []
    others: list[Path] = []
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not _is_foreign(name)]
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if not _is_foreign(name):
                (images if name.lower().endswith(SUFFIXES) else others).append(Path(root) / name)
    return sorted(images), sorted(others)


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """Files, folders (see `list_folder`) and glob patterns -> image files, each once.

    Raises:
        FileNotFoundError: If a source has no image.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        # a file called 'a[1].png' is that file before it is a pattern
        matches = (
            [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        )
        files = [match for match in matches if match.is_file()]
        for folder in (match for match in matches if match.is_dir()):
            files += list_folder(folder)[0]
        if not files:
            raise FileNotFoundError(
                f'no image at {source}: expected an image file, a folder with images '
                f'({", ".join(SUFFIXES)}), or a pattern such as "photos/*.png"'
            )
        found.update(dict.fromkeys(files))
    return list(found)


def class_folders(folder: str | Path) -> list[Path]:
    """The folders in a folder in the order of their names; hidden ones and `__MACOSX` are left out.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f'the folder {str(folder)!r} does not exist')
    return sorted(
        found for found in path.iterdir() if found.is_dir() and not _is_foreign(found.name)
    )


def choose(length: int, number: int | None) -> list[int]:
    """Draw up to `number` of `length` indices with a fixed seed; None gives all, in order."""
    if number is None:
        return [*range(length)]
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return order[:number].tolist()


def timm_transform(model: Any) -> Callable[[str | Path], torch.Tensor]:
    """Return timm's evaluation transform of a model, from an image file to a tensor (C, H, W)."""
    from timm.data import create_transform, resolve_data_config

    size = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    config = resolve_data_config({'input_size': size}, model=model)
    transform = create_transform(**config, is_training=False)
    return lambda path: transform(Image.fromarray(read_image(path)))
