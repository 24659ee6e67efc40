"""Where composition stops being free: its time against that of a training step, by size and batch.

    python tests/benchmark/scaling.py --json scaling.json --picture docs/images/scaling.png

Measured on this machine: composition of all layers, forward and backward, into memory that is kept
(as in training); AdamW on the attention weights of the dense model and on the atoms; and a training
step (forward and backward) of the dense model at a few batch sizes. From these, the ratio of the two
training steps = 1 + (composition - AdamW saved) / (dense step with AdamW). Steps of a size that does
not fit are extrapolated by FLOPs and said to be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from masa_vit.layers.kernels import compose_rows, composition_gradients

SIZES = {  # timm name -> S
    'vit_tiny_patch16_224': 4,
    'vit_small_patch16_224': 4,
    'vit_base_patch16_224': 4,
    'vit_large_patch16_224': 8,
    'vit_giant_patch14_224': 13,
}
STEPS = {'tiny': (1, 4, 16), 'small': (1, 4, 16), 'base': (1, 4, 16), 'large': (1, 4), 'giant': ()}
"""Batch sizes at which the dense step is measured."""


def seconds(call: Callable[[], object], runs: int) -> float:
    """Median of `runs`, after one."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def composition(dim: int, depth: int, num_atoms: int, runs: int = 7) -> float:
    """Seconds to compose Q, K, V and O of all layers, and to take the gradients."""
    atoms = [torch.randn(num_atoms, dim, dim) for _ in 'qkvo']
    coef = torch.randn(depth, num_atoms)
    qkv, o = torch.randn(depth, 3 * dim * dim), torch.randn(depth, dim * dim)
    rows = [*qkv.chunk(3, 1), o]

    def run() -> None:
        for atom, row in zip(atoms, rows, strict=True):
            compose_rows(row, coef, atom)
        for atom, row in zip(atoms, rows, strict=True):
            composition_gradients(row, coef, atom)

    return seconds(run, runs)


def adamw(*shape: int, runs: int = 5) -> float:
    """Seconds of a step of AdamW on one parameter."""
    param = torch.nn.Parameter(torch.randn(shape))
    param.grad = torch.randn(shape)
    return seconds(torch.optim.AdamW([param]).step, runs)


def dense_step(name: str, batch: int, runs: int) -> float:
    """Seconds of forward and backward of the dense model."""
    model = timm.create_model(name)
    images = torch.randn(batch, 3, 224, 224)

    def run() -> None:
        model.zero_grad()
        model(images).sum().backward()

    return seconds(run, runs)


def measure(name: str) -> dict:
    """All figures of one size."""
    with torch.device('meta'):
        model = timm.create_model(name)
    dim, depth, num_atoms = model.embed_dim, len(model.blocks), SIZES[name]
    count = sum(p.numel() for p in model.parameters())
    tokens = model.patch_embed.num_patches + 1
    attention = 4 * depth * dim * dim
    blocks = sum(p.numel() for p in model.blocks.parameters())
    per_million = adamw(4, 1024, 1024) / 4
    short = name.split('_')[1]
    result = dict(
        size=short,
        dim=dim,
        depth=depth,
        num_atoms=num_atoms,
        parameters=count,
        composition=composition(dim, depth, num_atoms),
        adamw_saved=per_million * (attention * (1 - num_atoms / depth)) / 2**20,
        adamw=per_million * count / 2**20,
        flops=6 * tokens * (blocks + 2 * depth * tokens * dim),  # an image, forward and backward
        steps={
            str(batch): dense_step(name, batch, 5 if dim < 700 else 3) for batch in STEPS[short]
        },
    )
    print(json.dumps(result), flush=True)
    return result


def draw(results: list[dict], path: Path) -> None:
    """Draw the time of composition, less the AdamW saved, over that of the dense step."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4.2), layout='constrained')
    base = results[-2]  # the largest whose steps are measured
    batch, step = list(base['steps'].items())[-1]
    for color, result in zip(
        ('#0072B2', '#009E73', '#D55E00', '#CC79A7', '#666666'), results, strict=True
    ):
        known = {int(k): v for k, v in result['steps'].items()}
        extrapolated = not known
        if extrapolated:
            rate = step / int(batch) * result['flops'] / base['flops']
            known = {k: rate * k for k in (1, 4, 16)}
        whole = {k: v + result['adamw'] for k, v in known.items()}
        label = (
            f'ViT-{result["size"]}, d={result["dim"]}, L={result["depth"]}, S={result["num_atoms"]}'
        )
        added = [100 * result['composition'] / v for v in whole.values()]
        net = [100 * (result['composition'] - result['adamw_saved']) / v for v in whole.values()]
        style = ':' if extrapolated else '-'
        ax.plot(
            list(whole),
            added,
            style,
            color=color,
            marker='o',
            ms=4,
            label=label + (' (step by FLOPs)' if extrapolated else ''),
        )
        ax.plot(list(whole), net, style, color=color, marker='s', ms=4, mfc='none')
    ax.axhline(0, color='black', lw=0.8)
    ax.set(
        xscale='log',
        xticks=[1, 4, 16],
        xticklabels=['1', '4', '16'],
        xlabel='batch size',
        ylabel='% of the dense training step',
        title='Composition (filled), and less the AdamW that it spares (hollow)',
    )
    ax.legend(fontsize=8)
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--picture', type=Path, required=True)
    args = parser.parse_args()
    results = [measure(name) for name in SIZES]
    grid = [
        dict(dim=dim, depth=depth, num_atoms=s, seconds=composition(dim, depth, s))
        for dim, depth, s in [
            *[(768, 12, s) for s in (1, 2, 4, 8, 12)],
            *[(768, depth, 4) for depth in (6, 24, 48)],
            *[(dim, 12, 4) for dim in (192, 384, 1536)],
        ]
    ]
    for row in grid:
        print(json.dumps(row))
    args.json.write_text(json.dumps(dict(sizes=results, grid=grid), indent=2) + '\n')
    draw(results, args.picture)


if __name__ == '__main__':
    main()
