"""The calls that are timed: a training step, evaluation, loading, folding, compressing."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint
from torch import nn
from torch.utils.benchmark import timer

from masa_vit.benchmark.subjects import Subject
from masa_vit.benchmark.timing import Call, timed
from masa_vit.export import bake, fold
from masa_vit.layers import SharedLinear

DTYPES = ('fp32', 'bf16')


def precision(dtype: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a forward pass: autocast for 'bf16'."""
    return nullcontext() if dtype == 'fp32' else torch.autocast(device.type, torch.bfloat16)


def training_step(
    subject: Subject, device: torch.device, dtype: str = 'fp32', compiled: bool = False
) -> Call:
    """Return a call of forward, backward and AdamW (fused on CUDA), timed as a whole and in parts."""
    subject.model.train()
    fused = device.type == 'cuda' or None
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=1e-6, fused=fused)
    model = maybe_compile(subject.model, compiled)

    def step() -> dict[str, float]:
        times = [timer()]
        with precision(dtype, device):
            loss = subject.loss(model)
        times.append(timer())
        loss.backward()
        times.append(timer())
        optimizer.step()
        optimizer.zero_grad()
        times.append(timer())
        parts = [end - start for start, end in itertools.pairwise(times)]
        names = ('forward', 'backward', 'optimizer')
        return {'training step': times[-1] - times[0], **dict(zip(names, parts, strict=True))}

    return step


def evaluation(
    subject: Subject,
    model: nn.Module,
    device: torch.device,
    dtype: str = 'fp32',
    compiled: bool = False,
) -> Call:
    """Return a call of a forward pass of `model` (the subject's, or its folded form)."""
    model = maybe_compile(model.eval(), compiled)

    def predict() -> None:
        with torch.inference_mode(), precision(dtype, device):
            subject.predict(model)

    return timed('evaluation', predict)


def maybe_compile(model: nn.Module, compiled: bool) -> nn.Module:
    """Return the model, through `torch.compile` if `compiled`."""
    return cast(nn.Module, torch.compile(model)) if compiled else model


@contextmanager
def loading(subject: Subject, device: torch.device) -> Iterator[Call]:
    """Yield a call that reads a file of weights into a model of dense speed.

    A MASA model is saved baked, and read into its folded form. The file exists inside the context.
    """
    with tempfile.TemporaryDirectory(prefix='masa_vit_') as folder:
        path = Path(folder, 'model.safetensors')
        save_weights(subject.model, path)
        yield timed('load', partial(load, subject, path, device))


def load(subject: Subject, path: Path, device: torch.device) -> nn.Module:
    """Read a file of `save_weights`; return the dense model, or the folded one."""
    if not subject.is_shared:
        load_checkpoint(subject.model, str(path), device=str(device))
        return subject.model
    if 'baked' not in subject.cache:
        subject.cache['baked'] = bake(copy.deepcopy(subject.model))
    load_checkpoint(subject.cache['baked'], str(path), device=str(device))
    return fold(subject.cache['baked'])


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model as safetensors, those of a MASA model baked."""
    if any(isinstance(module, SharedLinear) for module in model.modules()):
        model = bake(copy.deepcopy(model))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def compressing(dense: nn.Module, shared: nn.Module) -> Call:
    """Return a call of `masa_vit.compress` to as many atoms as `shared` has in its first dictionary."""
    from masa_vit.compression import compress

    layer = next(module for module in shared.modules() if isinstance(module, SharedLinear))
    num_atoms = next(iter(layer.banks.values())).num_atoms
    return timed('compress', partial(compress, dense, num_atoms=num_atoms))
