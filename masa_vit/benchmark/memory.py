"""Peak memory of training or evaluation, in a separate process."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch

from masa_vit.benchmark.steps import evaluation, training_step
from masa_vit.benchmark.subjects import Spec, Subject

STEPS = 3

_MALLOC = {'MALLOC_MMAP_THRESHOLD_': '65536'}
"""glibc then returns freed tensors at once. By default it keeps up to a tenth of the peak, differently
in every run."""


def peak_memory(
    build: Callable[[Spec], Subject],
    spec: Spec,
    dtype: str = 'fp32',
    compiled: bool = False,
    train: bool = True,
) -> tuple[int, int]:
    """Return the peak bytes of three training steps, or evaluations, in a new process.

    Returns:
        The peak, and its part after the imports. On the CPU the peak is all memory of the process,
        including Python and torch; on CUDA it is the memory that torch has allocated.
    """
    arguments = (build, spec, dtype, compiled, train, torch.get_num_threads())
    with patch.dict(os.environ, _MALLOC), get_context('spawn').Pool(1) as pool:
        return pool.apply(_measure, arguments)


def _measure(
    build: Callable[[Spec], Subject],
    spec: Spec,
    dtype: str,
    compiled: bool,
    train: bool,
    threads: int,
) -> tuple[int, int]:
    torch.set_num_threads(threads)
    device = torch.device(spec.device)
    start = _peak(device)
    subject = build(spec)
    if train:
        step = training_step(subject, device, dtype, compiled)
    else:
        step = evaluation(subject, subject.model, device, dtype, compiled)
    for _ in range(STEPS):
        step()
    peak = _peak(device)
    return peak, peak - start


def _peak(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    status = Path('/proc/self/status')
    if status.exists():  # Linux adds the parent's memory to ru_maxrss
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
