"""The operators are tested through mmcv's own functions and layers.

The references in these tests are plain loops; autograd through them gives the gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from masa_vit.detection import mmcv_ops  # before mmcv.ops is imported

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mmcv.ops call the stand-in, also where mmcv has compiled operators."""
    finder = mmcv_ops._Finder()
    module = finder.create_module(finder.find_spec('mmcv._ext', None))
    finder.exec_module(module)
    for name, ops in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(ops, 'ext_module'):
            monkeypatch.setattr(ops, 'ext_module', module)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def random_boxes() -> Callable[..., Tensor]:
    """(count, 4): corners within 1.5 * size, sides from 1 to 1 + size / 2."""

    def create(count: int, size: float = 40.0) -> Tensor:
        corner = torch.rand(count, 2) * size
        return torch.cat([corner, corner + torch.rand(count, 2) * size / 2 + 1], dim=1)

    return create


@pytest.fixture
def random_rois(random_boxes: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """(count, 5): number of the image of two, and a box."""

    def create(count: int, size: float) -> Tensor:
        return torch.cat([torch.randint(2, (count, 1)), random_boxes(count, size)], dim=1)

    return create
