"""What is timed: a training step, evaluation, loading a file, folding, compressing."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint
from torch import nn

from masa_vit.benchmark.subjects import Subject
from masa_vit.benchmark.timing import Call, Stopwatch, timed
from masa_vit.export import bake, fold
from masa_vit.layers import SharedLinear

DTYPES = ('fp32', 'bf16')


def precision(dtype: str, device: torch.device) -> AbstractContextManager[None]:
    """The context of a forward pass: autocast for 'bf16', nothing for 'fp32'."""
    if dtype == 'fp32':
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def training_step(
    subject: Subject, device: torch.device, dtype: str = 'fp32', compiled: bool = False
) -> Call:
    """Forward, backward and AdamW (with `zero_grad`); the seconds of each and of the whole step.

    AdamW is the fused one on CUDA.
    """
    subject.model.train()
    fused = device.type == 'cuda' or None
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=1e-6, fused=fused)
    model = maybe_compile(subject.model, compiled)

    def step() -> dict[str, float]:
        watch = Stopwatch(device)
        with precision(dtype, device):
            loss = subject.loss(model)
        watch.lap()
        loss.backward()
        watch.lap()
        optimizer.step()
        optimizer.zero_grad()
        watch.lap()
        forward, backward, update = watch.seconds()
        return {
            'training step': forward + backward + update,
            'forward': forward,
            'backward': backward,
            'optimizer': update,
        }

    return step


def evaluation(
    subject: Subject,
    model: nn.Module,
    device: torch.device,
    dtype: str = 'fp32',
    compiled: bool = False,
) -> Call:
    """A forward pass of `model` (the subject's, or its folded form) in inference mode."""
    model = maybe_compile(model.eval(), compiled)

    def predict() -> None:
        with torch.inference_mode(), precision(dtype, device):
            subject.predict(model)

    return timed('evaluation', predict, device)


def maybe_compile(model: nn.Module, compiled: bool) -> nn.Module:
    """The model through `torch.compile`, if asked for."""
    return cast(nn.Module, torch.compile(model)) if compiled else model


@contextmanager
def loading(subject: Subject, device: torch.device) -> Iterator[Call]:
    """Read a file of weights into a model that exists and is as fast as a dense one.

    A MASA model is saved baked, and read into its folded form. The file is on disk while the context
    is open.
    """
    with tempfile.TemporaryDirectory(prefix='masa_vit_') as folder:
        path = Path(folder, 'model.safetensors')
        save_weights(subject.model, path)
        yield timed('load', _loader(subject, path, device), device)


def _loader(subject: Subject, path: Path, device: torch.device) -> Callable[[], object]:
    if not subject.is_shared:
        return partial(load_checkpoint, subject.model, str(path), device=str(device))
    return partial(_load_and_fold, bake(copy.deepcopy(subject.model)), path, device)


def _load_and_fold(model: nn.Module, path: Path, device: torch.device) -> nn.Module:
    load_checkpoint(model, str(path), device=str(device))
    return fold(model)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model as safetensors, those of a MASA model baked."""
    if any(isinstance(module, SharedLinear) for module in model.modules()):
        model = bake(copy.deepcopy(model))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def folding(subject: Subject, device: torch.device) -> Call:
    """`masa_vit.fold`."""
    return timed('fold', partial(fold, subject.model), device)


def compressing(dense: nn.Module, num_atoms: int, device: torch.device) -> Call:
    """`masa_vit.compress`, of a dense model to `num_atoms` atoms a dictionary."""
    from masa_vit.compression import compress

    return timed('compress', partial(compress, dense, num_atoms=num_atoms), device)


def num_atoms_of(model: nn.Module) -> int:
    """The number of atoms of a MASA model (of its first dictionary)."""
    shared = next(module for module in model.modules() if isinstance(module, SharedLinear))
    return next(iter(shared.banks.values())).num_atoms
