"""What aligning the heads does for a Matrix PCA of attention weights, beside a Gaussian control.

    python tests/benchmark/alignment_energy.py model.safetensors --num-heads 12 --num-atoms 2
    python tests/benchmark/alignment_energy.py epoch_15.pth --num-heads 4 --num-atoms 4
    python tests/benchmark/alignment_energy.py vit_base_patch16_224 --num-atoms 4 --seeds 0

Files hold the weights of a timm VisionTransformer (blocks.0.attn.qkv.weight) or of a BERT encoder
(encoder.layer.0.attention.self.query.weight); what stands before these names does not matter. A
name of timm is a model with random weights.

captured: share of the energy of Q, K, V, O that the atoms keep. Gaussian: the same for Gaussian
matrices of the same norms (mean over the seeds). QK and VO error: relative squared error of the
products Q_h^T K_h and O_h V_h of a layer's heads, mean over layers. These products are all that
attention knows of the weights (but biases), and alignment does not change them: unlike the captured
share, their errors compare across the modes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path

import timm
import torch
from torch import Tensor

from masa_vit.compression.alignment import align, gaussian_control
from masa_vit.compression.source_weights import stacked_weights
from masa_vit.compression.symmetry import split_heads
from masa_vit.models import read_state_dict

MODES = ('plain', 'permutation', 'rotation', 'invertible')
KEYS = {  # what is stacked in it -> keys
    'qkv': r'blocks\.(\d+)\.attn\.qkv\.weight',
    'q': r'layer\.(\d+)\.attention\.self\.query\.weight',
    'k': r'layer\.(\d+)\.attention\.self\.key\.weight',
    'v': r'layer\.(\d+)\.attention\.self\.value\.weight',
    'o': r'(?:blocks\.(\d+)\.attn\.proj|layer\.(\d+)\.attention\.output\.dense)\.weight',
}


def read(path: Path) -> dict[str, Tensor]:
    """Stack the attention weights in a file."""
    state = read_state_dict(path)
    weights: dict[str, Tensor] = {}
    for names, pattern in KEYS.items():
        layers = {
            int(next(filter(None, match.groups()))): value
            for key, value in state.items()
            if (match := re.search(pattern + '$', key))
        }
        if layers:
            stack = torch.stack([layers[index].float() for index in sorted(layers)])
            weights.update(zip(names, stack.chunk(len(names), 1), strict=True))
    if set(weights) != set('qkvo'):
        raise SystemExit(f'{path} holds the attention weights of no model known here')
    return weights


def product_errors(
    weights: dict[str, Tensor], num_heads: int, num_atoms: int
) -> tuple[float, float]:
    """Relative squared errors of Q_h^T K_h and of O_h V_h after Matrix PCA, mean over layers."""
    true = split_heads(weights, num_heads)
    kept = {}
    for name, rows in true.items():
        flat = rows.flatten(1)
        atoms = torch.linalg.eigh(flat @ flat.T)[1][:, -num_atoms:]
        kept[name] = (atoms @ (atoms.T @ flat)).view_as(rows)

    def inner(x: dict[str, Tensor], y: dict[str, Tensor], pair: str) -> Tensor:
        first, second = pair
        return ((x[first] @ y[first].mT) * (x[second] @ y[second].mT)).sum((1, 2, 3))  # (L,)

    def error(pair: str) -> float:
        energy = inner(true, true, pair)
        lost = inner(kept, kept, pair) - 2 * inner(true, kept, pair) + energy
        return float((lost / energy).mean())

    return error('qk'), error('vo')


def measure(
    weights: dict[str, Tensor],
    num_heads: int,
    num_atoms: int,
    mode: str,
    seeds: list[int],
    tol: float,
) -> dict:
    """All figures of one mode."""
    # No sweep and no map: the weights as they are.
    options = dict(mode='permutation', max_iters=0) if mode == 'plain' else dict(mode=mode, tol=tol)
    start = time.perf_counter()
    found = align(weights, num_heads, num_atoms, **options)
    seconds = time.perf_counter() - start
    last = 0 if mode == 'plain' else -1
    control = [
        gaussian_control(weights, num_heads, num_atoms, seed=seed, **options).energy[last]
        for seed in seeds
    ]
    moved = weights if mode == 'plain' else found.transform(weights)
    qk, vo = product_errors(moved, num_heads, num_atoms)
    return dict(
        mode=mode,
        captured=found.energy[last],
        gaussian=statistics.mean(control),
        qk_error=qk,
        vo_error=vo,
        sweeps=0 if mode == 'plain' else len(found.energy) - 2,
        seconds=round(seconds, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='.safetensors or .pth file, or name of a timm model')
    parser.add_argument('--num-atoms', type=int, required=True)
    parser.add_argument('--num-heads', type=int, help='needed for a file')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--tol', type=float, default=1e-4, help='as of align')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    if Path(args.source).is_file():
        weights = read(Path(args.source))
        if args.num_heads is None:
            parser.error('--num-heads: a file does not tell')
        num_heads = args.num_heads
    else:
        torch.manual_seed(0)
        model = timm.create_model(args.source)
        weights, num_heads = stacked_weights(model), model.blocks[0].attn.num_heads
    depth, dim, _ = weights['q'].shape
    print(f'{args.source}: L={depth} d={dim} H={num_heads} S={args.num_atoms}')
    print('mode         captured  Gaussian  QK error  VO error  sweeps  seconds')
    rows = []
    for mode in args.modes:
        row = measure(weights, num_heads, args.num_atoms, mode, args.seeds, args.tol)
        rows.append(row)
        print(
            f'{mode:<12} {row["captured"]:8.3f}  {row["gaussian"]:8.3f}  {row["qk_error"]:8.3f}  '
            f'{row["vo_error"]:8.3f}  {row["sweeps"]:6}  {row["seconds"]:7}',
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
    main()
