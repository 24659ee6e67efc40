"""Image files: find, choose and read them."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

__all__ = [
    'UnreadableImageError',
    'choose',
    'class_folders',
    'find_images',
    'read_image',
    'timm_transform',
]


class UnreadableImageError(ValueError):
    """A file that should be an image and is not; the message names it."""

    def __init__(self, message: str):
        # torch re-raises a worker's error with the worker's traceback before the message
        super().__init__(message.rpartition('UnreadableImageError: ')[2].strip())


def read_image(path: str | Path) -> np.ndarray:
    """Read a file as an (H, W, 3) uint8 array.

    Raises:
        UnreadableImageError: names a file that is truncated, broken, absent or no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert('RGB'))
    # Pillow raises SyntaxError for broken PNGs, its DecompressionBombError is no OSError
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f'cannot read the image {path}: {error}') from error


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """Files, folders (with all below them) and glob patterns -> image files, each once.

    Raises:
        FileNotFoundError: if one of the sources gives no image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        # a file called 'a[1].png' is that file before it is a pattern
        matches = (
            [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        )
        files = [match for match in matches if match.is_file()]
        for folder in (match for match in matches if match.is_dir()):
            files += sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise FileNotFoundError(
                f'no image at {source}: expected an image file, a folder with images '
                f'({", ".join(IMG_EXTENSIONS)}), or a pattern such as "photos/*.png"'
            )
        found.update(dict.fromkeys(files))
    return list(found)


def class_folders(folder: str | Path) -> list[Path]:
    """The folders in a folder in the order of their names, hidden ones left out.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f'the folder {str(folder)!r} does not exist')
    return sorted(found for found in path.glob('[!.]*') if found.is_dir())


def choose(length: int, number: int | None) -> list[int]:
    """Draw indices of at most so many images, always the same ones; None: of all, in order."""
    if number is None:
        return [*range(length)]
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return order[:number].tolist()


def timm_transform(model: Any) -> Callable[[str | Path], torch.Tensor]:
    """Read an image file as timm prepares it for a model that is evaluated."""
    from timm.data import create_transform, resolve_data_config

    size = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    config = resolve_data_config({'input_size': size}, model=model)
    transform = create_transform(**config, is_training=False)
    return lambda path: transform(Image.fromarray(read_image(path)))
