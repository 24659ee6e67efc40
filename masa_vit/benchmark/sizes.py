"""Sizes of a model: parameters, optimizer state, checkpoint, bytes sent by DDP, FLOPs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from masa_vit.benchmark.steps import save_weights
from masa_vit.benchmark.subjects import Subject

UNITS = {
    'parameters': '',
    'trainable parameters': '',
    'optimizer state': 'bytes',
    'gradients all-reduced': 'bytes',
    'checkpoint': 'bytes',
}


def count_sizes(subject: Subject) -> dict[str, float]:
    """Measure the sizes in `UNITS`.

    - 'optimizer state': of AdamW, after a step.
    - 'gradients all-reduced': the gradients after a step, which DistributedDataParallel sums over the
      ranks in every step. A ring of R ranks sends 2 (R - 1) / R times as much from each.
    - 'checkpoint': the safetensors file, of a MASA model the baked one.

    The step has learning rate 0, and leaves the model's weights as they were.
    """
    parameters = list(subject.model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    subject.model.train()
    optimizer = torch.optim.AdamW(trainable, lr=0.0)
    subject.loss(subject.model).backward()
    optimizer.step()
    gradients = [parameter.grad for parameter in trainable if parameter.grad is not None]
    state = [value for of_one in optimizer.state.values() for value in of_one.values()]
    sizes: dict[str, float] = {
        'parameters': sum(parameter.numel() for parameter in parameters),
        'trainable parameters': sum(parameter.numel() for parameter in trainable),
        'optimizer state': sum(v.nbytes for v in state if isinstance(v, torch.Tensor)),
        'gradients all-reduced': sum(gradient.nbytes for gradient in gradients),
        'checkpoint': _checkpoint_bytes(subject),
    }
    optimizer.zero_grad()
    return sizes


def _checkpoint_bytes(subject: Subject) -> int:
    with tempfile.TemporaryDirectory(prefix='masa_vit_') as folder:
        path = Path(folder, 'model.safetensors')
        save_weights(subject.model, path)
        return path.stat().st_size


def count_flops(subject: Subject) -> dict[str, float]:
    """Count the floating-point operations of matrix products and convolutions.

    Attention runs as matrix products, since the counter does not know every fused kernel.

    Args:
        subject: On the meta device: nothing is computed.

    Returns:
        'FLOPs of evaluation' and 'FLOPs of training', which is forward and backward.
    """
    evaluation, training = FlopCounterMode(display=False), FlopCounterMode(display=False)
    model = subject.model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), evaluation:  # the counter fails on parameters in inference mode
            subject.predict(model)
        model.train()
        with training:
            subject.loss(model).backward()
    return {
        'FLOPs of evaluation': evaluation.get_total_flops(),
        'FLOPs of training': training.get_total_flops(),
    }
