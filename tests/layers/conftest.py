"""Fixtures of the tests of composition; their helpers lie beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from masa_vit.layers import COMPOSITIONS

sys.path.insert(0, str(Path(__file__).parent))  # stacks

from stacks import CHOICES


@pytest.fixture(params=[*COMPOSITIONS, 'joint, small weights'])
def composition(request, monkeypatch) -> str:
    """Each way to compose, and the way in which a joint pass takes small weights."""
    composition, *small = request.param.split(', ')
    if not small:
        monkeypatch.setattr('masa_vit.layers.composition._SMALL', 0)
    return composition


@pytest.fixture(params=CHOICES)
def choice(request) -> dict:
    return CHOICES[request.param]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 5, 8, dtype=torch.float64)
