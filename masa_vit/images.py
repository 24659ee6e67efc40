"""Image files: find and read them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ['UnreadableImageError', 'find_images', 'read_image']


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
