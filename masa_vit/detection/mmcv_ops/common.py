"""Shared parts of the operators."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

OPERATORS: dict[str, Callable[..., Any]] = {}  # name in mmcv._ext -> function

HOW_TO_COMPILE = (
    'wheels for some versions of torch are at https://mmwheels.onedl.ai, '
    'https://onedl-mmcv.readthedocs.io/en/latest/get_started/build.html has the build steps'
)

_Function = TypeVar('_Function', bound=Callable[..., Any])


def operator(function: _Function) -> _Function:
    """Register a function under its name; the first one that is called says so in the log."""

    @functools.wraps(function)
    def announced(*args: Any, **kwargs: Any) -> Any:
        _announce()
        return function(*args, **kwargs)

    OPERATORS[function.__name__] = announced
    return announced  # type: ignore[return-value]


@functools.cache
def _announce() -> None:
    # on first use, not on import: by then there is a run, whose log file shall have it too
    from mmengine.logging import print_log

    print_log(
        "mmcv has no compiled operators here: masa_vit.detection uses torchvision's in their place",
        logger='current',
        level=logging.INFO,
    )


def refuse(what: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Say that only a compiled mmcv can do this.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        f"mmcv's {what} needs compiled operators, which this mmcv does not have; masa_vit "
        f'replaces only {", ".join(OPERATORS)}. Choose layers that do without, or install an '
        f'onedl-mmcv compiled for torch {torch.__version__}: {HOW_TO_COMPILE}'
    )


def wide(*tensors: Tensor) -> list[Tensor]:
    """All in one dtype, at least float32, for torchvision takes neither mixed nor all dtypes."""
    dtypes = (tensor.dtype for tensor in tensors)
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]
