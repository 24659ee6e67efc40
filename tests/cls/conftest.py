from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import masa_vit.cls  # noqa: F401  registers its classes


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A data folder: {train,val}/{cat,dog,emu}, 8 and 4 images a class, in nested folders too.

    The classes differ in brightness, so that a model can learn them.
    """
    rng = np.random.default_rng(0)
    root = tmp_path / 'data'
    for split, count in (('train', 8), ('val', 4)):
        for index, name in enumerate(('cat', 'dog', 'emu')):
            for number in range(count):
                folder = root / split / name / ('a' if number % 2 else 'b/c')
                folder.mkdir(parents=True, exist_ok=True)
                image = rng.integers(0, 60, (20, 24, 3)) + 90 * index
                Image.fromarray(image.astype(np.uint8)).save(folder / f'{number}.png')
    return root


@pytest.fixture
def tiny() -> Callable[..., dict]:
    """Config of a classifier of 16x16 images, MASA unless told otherwise."""

    def config(**changes) -> dict:
        args = dict(img_size=16, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=1.0)
        args.update(changes.pop('model_args', {}))
        base = dict(
            type='ImageClassifier', model_name='vit_tiny_masa_s2', model_args=args, num_classes=3
        )
        return base | changes

    return config
