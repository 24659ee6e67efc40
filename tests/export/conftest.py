"""What the formats have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from masa_vit.export.check import Form

ARGS = {
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 32,
    'depth': 4,
    'num_heads': 2,
    'num_classes': 5,
}


@pytest.fixture(scope='session')
def args() -> dict[str, Any]:
    """The arguments of the small models."""
    return dict(ARGS)


@pytest.fixture(scope='session')
def small(small: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Create a small model with a record of its arguments, which timm keeps since 1.0.27."""

    def create(*name: str, **kwargs: Any) -> Any:
        model: Any = small(*name, **kwargs)
        if not hasattr(model, '_model_args'):
            model._model_args = {**ARGS, **kwargs}
        return model

    return create


@pytest.fixture
def contents():
    """Read all files of a folder: relative path -> bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*'))
            if path.is_file()
        }

    return read


@pytest.fixture
def wrong_weights(monkeypatch):
    """Write other weights than those that are to be written."""
    right = Form.stored

    def stored(self: Form) -> nn.Module:
        model = right(self)
        with torch.no_grad():
            model.head.bias.add_(1)
        return model

    def arrange() -> None:
        monkeypatch.setattr(Form, 'stored', stored)

    return arrange
