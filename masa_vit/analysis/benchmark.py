"""Time a model against another in one process: training step, evaluation, evaluation after fold."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

from masa_vit.analysis.parameters import count_parameters
from masa_vit.convert import fold
from masa_vit.models import MasaVisionTransformer, dense_architecture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the tool."""
    parser.add_argument('model', help='a timm model name, ours or any other')
    parser.add_argument(
        '--against', help='the model to compare with; default: the dense model that MODEL folds to'
    )
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--img-size', type=int, help="default: the model's own")
    parser.add_argument('--pairs', type=int, default=7, help='alternated pairs to time')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='also write the result to this file')


def run(args: argparse.Namespace) -> int:
    """Time the pair and print medians of the paired ratios."""
    for name in filter(None, (args.model, args.against)):
        if not timm.is_model(name):
            raise ValueError(f'{name!r} is no model that timm knows; see timm.list_models()')
    if args.pairs < 1 or args.batch_size < 1:
        raise ValueError(
            f'--pairs and --batch-size must be >= 1, got {args.pairs}, {args.batch_size}'
        )
    result = benchmark(
        args.model, args.against, args.batch_size, args.img_size, args.pairs, args.device
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
) -> dict:
    """Time `name` and `against` in turn, A B B A ..., after one warm-up of each.

    Returns:
        Settings, parameter counts, and per measurement the seconds of every run and the ratios
        `name` / `against` pair by pair.
    """
    kwargs = {'img_size': img_size} if img_size else {}
    model = timm.create_model(name, **kwargs).to(device)
    if against is None:
        against = dense_architecture(name) if isinstance(model, MasaVisionTransformer) else name
    other = timm.create_model(against, **kwargs).to(device)
    size = img_size or model.default_cfg['input_size'][-1]
    images = torch.randn(batch_size, 3, size, size, device=device)

    measured = {
        'training step': _time_pairs(
            _training_step(model, images), _training_step(other, images), pairs
        )
    }
    model.eval()
    other.eval()
    measured['evaluation'] = _time_pairs(_forward(model, images), _forward(other, images), pairs)
    if isinstance(model, MasaVisionTransformer):
        folded = fold(model)
        measured['evaluation after fold'] = _time_pairs(
            _forward(folded, images), _forward(other, images), pairs
        )
    return {
        'model': name,
        'against': against,
        'batch_size': batch_size,
        'img_size': size,
        'device': device,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'parameters': [count_parameters(m).total for m in (model, other)],
        'measurements': measured,
    }


def _training_step(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW, with cross entropy on random targets."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
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
    Console().print(table)
