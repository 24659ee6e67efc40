"""Shared by all tests: small models that stand for the big ones."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import masa_vit  # noqa: F401  (registers the models)

SMALL = {
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 32,
    'depth': 4,
    'num_heads': 2,
    'num_classes': 5,
}


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which mmengine runs for every dataset."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def small() -> Callable[..., nn.Module]:
    """Create a small model: ``small('vit_tiny_masa_s2', coefficients='mlp')``.

    It has a record of its arguments, which timm keeps since 1.0.27.
    """

    def create(name: str = 'vit_tiny_masa_s2', **kwargs: Any) -> Any:
        model = timm.create_model(name, **{**SMALL, **kwargs})
        if not hasattr(model, '_model_args'):
            model._model_args = {**SMALL, **kwargs}
        return model

    return create


@pytest.fixture(scope='session')
def noisy(small):
    """Create a small model whose matrices are noise: ``noisy(seed=1, num_atoms=3)``."""

    def create(name='vit_tiny_masa_s2', seed=0, **args):
        torch.manual_seed(seed)
        model = small(name, **args)
        for param in model.parameters():
            if param.dim() > 1:
                nn.init.normal_(param, std=0.1)
        return model.eval()

    return create


@pytest.fixture(scope='session')
def args() -> dict[str, Any]:
    """The arguments of the small models."""
    return dict(SMALL)


@pytest.fixture
def images() -> torch.Tensor:
    """Images for the small models, (2, 3, 32, 32)."""
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Read all files of a folder: relative path -> bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*'))
            if path.is_file()
        }

    return read


@pytest.fixture(scope='session')
def make_image_root() -> Callable[[Path], Path]:
    """Write a data folder: {train,val}/{cat,dog,emu}, 8 and 4 images a class, in nested folders too.

    The classes differ in brightness, so that a model can learn them.
    """
    import numpy as np
    from PIL import Image

    def write(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for split, count in (('train', 8), ('val', 4)):
            for index, name in enumerate(('cat', 'dog', 'emu')):
                for number in range(count):
                    folder = root / split / name / ('a' if number % 2 else 'b/c')
                    folder.mkdir(parents=True, exist_ok=True)
                    image = rng.integers(0, 60, (20, 24, 3)) + 90 * index
                    Image.fromarray(image.astype(np.uint8)).save(folder / f'{number}.png')
        return root

    return write


@pytest.fixture
def image_root(make_image_root: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A data folder that a test may change."""
    return make_image_root(tmp_path / 'data')


@pytest.fixture(scope='session')
def tiny() -> Callable[..., dict]:
    """Config of a classifier of 16x16 images, MASA unless told otherwise."""

    def config(**changes: Any) -> dict:
        args = dict(img_size=16, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=1.0)
        args.update(changes.pop('model_args', {}))
        base = dict(
            type='ImageClassifier', model_name='vit_tiny_masa_s2', model_args=args, num_classes=3
        )
        return base | changes

    return config


@pytest.fixture
def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]
