"""Shared by all tests: small models that stand for the big ones."""

from __future__ import annotations

import socket
from collections.abc import Callable
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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def small() -> Callable[..., nn.Module]:
    """Create a small model: ``small('vit_tiny_masa_s2', coefficients='mlp')``."""

    def create(name: str = 'vit_tiny_masa_s2', **kwargs: Any) -> nn.Module:
        return timm.create_model(name, **{**SMALL, **kwargs})

    return create


@pytest.fixture
def images() -> torch.Tensor:
    """Images for the small models, (2, 3, 32, 32)."""
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]
