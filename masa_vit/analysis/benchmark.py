"""Time a model against another in one process: training step, evaluation, evaluation after fold."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import timm
import torch
from torch import nn

from masa_vit.convert import fold
from masa_vit.layers import SharedLinear
from masa_vit.models import dense_architecture


@dataclass
class Subject:
    """A model, and what is timed: functions from a model of its kind to a call without arguments."""

    name: str
    model: nn.Module
    img_size: int
    training_step: Callable[[nn.Module], Callable[[], None]]
    evaluation: Callable[[nn.Module], Callable[[], None]]


Build = Callable[..., Subject]
"""(name, dense, batch_size, img_size, device) -> the model, or its dense twin."""


def timm_subject(
    name: str, dense: bool, batch_size: int, img_size: int | None, device: str
) -> Subject:
    """A timm model on random images.

    Raises:
        ValueError: If timm knows no such model.
    """
    if not timm.is_model(name):
        raise ValueError(f'{name!r} is no model that timm knows; see timm.list_models()')
    name = (dense_architecture(name) or name) if dense else name
    model = timm.create_model(name, **({'img_size': img_size} if img_size else {})).to(device)
    size = img_size or model.default_cfg['input_size'][-1]
    images = torch.randn(batch_size, 3, size, size, device=device)
    return Subject(
        name,
        model,
        size,
        partial(_training_step, images=images),
        partial(_evaluation, images=images),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the tool."""
    parser.add_argument(
        'model', help="a timm model name, ours or any other; or a detector's config"
    )
    parser.add_argument(
        '--against', help='the model to compare with; default: the dense model that MODEL folds to'
    )
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--img-size', type=int, help="default: the model's own, 1024 for detectors")
    parser.add_argument('--pairs', type=int, default=7, help='alternated pairs to time')
    parser.add_argument(
        '--memory',
        action='store_true',
        help='also the peak memory of training, one process a model',
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='also write the result to this file')


def run(args: argparse.Namespace, build: Build = timm_subject) -> int:
    """Time the pair and print medians of the paired ratios."""
    if args.pairs < 1 or args.batch_size < 1:
        raise ValueError(
            f'--pairs and --batch-size must be >= 1, got {args.pairs}, {args.batch_size}'
        )
    result = benchmark(
        args.model,
        args.against,
        args.batch_size,
        args.img_size,
        args.pairs,
        args.device,
        args.memory,
        build,
    )
    print_result(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
        print(f'result: {args.json}')
    return 0


def benchmark(
    name: str,
    against: str | None = None,
    batch_size: int = 8,
    img_size: int | None = None,
    pairs: int = 7,
    device: str = 'cpu',
    memory: bool = False,
    build: Build = timm_subject,
) -> dict:
    """Time `name` and `against` in turn, A B B A ..., after one warm-up of each.

    Returns:
        Settings, parameter counts, and per measurement the seconds of every run and the ratios
        `name` / `against` pair by pair; with `memory` the peak bytes of a process that trains for
        three steps (all of it on the CPU; what torch allocates on CUDA).
    """
    arguments = (batch_size, img_size, device)
    specs = [(name, False, *arguments), (against or name, not against, *arguments)]
    peaks = [_peak_memory(build, spec) for spec in specs] if memory else None
    subject, other = (build(*spec) for spec in specs)
    measured = {
        'training step': _time_pairs(
            subject.training_step(subject.model), other.training_step(other.model), pairs
        )
    }
    subject.model.eval()
    other.model.eval()
    reference = other.evaluation(other.model)
    measured['evaluation'] = _time_pairs(subject.evaluation(subject.model), reference, pairs)
    if any(isinstance(module, SharedLinear) for module in subject.model.modules()):
        folded = subject.evaluation(fold(subject.model))
        measured['evaluation after fold'] = _time_pairs(folded, reference, pairs)
    return {
        'model': subject.name,
        'against': other.name,
        'batch_size': batch_size,
        'img_size': subject.img_size,
        'device': device,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'parameters': [sum(p.numel() for p in s.model.parameters()) for s in (subject, other)],
        'peak_bytes': peaks,
        'measurements': measured,
    }


def _peak_memory(build: Build, spec: tuple) -> int:
    """Peak memory of three training steps, in a process that does nothing else."""
    with get_context('spawn').Pool(1) as pool:
        return pool.apply(_train_and_measure, (build, spec))


def _train_and_measure(build: Build, spec: tuple) -> int:
    subject = build(*spec)
    step = subject.training_step(subject.model)
    for _ in range(3):
        step()
    if 'cuda' in str(spec[-1]):
        return torch.cuda.max_memory_allocated()
    status = Path('/proc/self/status')
    if status.exists():  # of this process alone: Linux counts in ru_maxrss what it was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _training_step(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW, with cross entropy on one class."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def _evaluation(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward


def _time_pairs(a: Callable[[], None], b: Callable[[], None], pairs: int) -> dict:
    seconds: dict[str, list[float]] = {'model': [], 'against': []}
    for call in (a, b):
        call()
    for index in range(pairs):
        order = [('model', a), ('against', b)]
        for key, call in order if index % 2 == 0 else reversed(order):
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            seconds[key].append(time.perf_counter() - start)
    ratios = [x / y for x, y in zip(seconds['model'], seconds['against'], strict=True)]
    return {'seconds': seconds, 'ratios': ratios, 'median_ratio': statistics.median(ratios)}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_result(result: dict) -> None:
    """Print a table: median seconds of both, median and range of the paired ratios."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f'{result["model"]} over {result["against"]}, batch {result["batch_size"]}, '
        f'{result["img_size"]} px, {result["device"]}, {result["threads"]} threads'
    )
    for header in ('', 'seconds', 'of other', 'ratio', 'ratio, range'):
        table.add_column(header, justify='right' if header else 'left', no_wrap=True)
    for name, row in result['measurements'].items():
        times = [statistics.median(row['seconds'][key]) for key in ('model', 'against')]
        table.add_row(
            name,
            *(f'{value:.3f}' for value in times),
            f'{row["median_ratio"]:.3f}',
            f'{min(row["ratios"]):.3f} to {max(row["ratios"]):.3f}',
        )
    console = Console()
    console.print(table)
    if result['peak_bytes']:
        ours, others = result['peak_bytes']
        console.print(
            f'peak memory of training: {ours / 2**20:,.0f} MiB over {others / 2**20:,.0f} MiB = '
            f'{ours / others:.3f}'
        )
