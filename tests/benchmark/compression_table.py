"""Untuned accuracy of a trained dense classifier, compressed in many ways to the same counts.

    python tests/benchmark/compression_table.py CONFIG CHECKPOINT --json table.json

Every way is given the same calibration images (of the training set, not augmented), and keeps the
same share of the attention's weights or less. Top-1, and the mean divergence KL(dense || compressed) of
the predictions, are taken on both halves of the validation set (even and odd images): choose by one,
report the other. Rows are added to the JSON file as they come,
and those that it has are not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import masa_vit
from masa_vit.compression import CompressionOptions, compress_with_record
from masa_vit.compression.budget import RankBudget, allocate
from masa_vit.compression.fit import low_rank
from masa_vit.compression.metric import collect_statistics
from masa_vit.compression.source_weights import dense_weights, stacked_weights
from masa_vit.training.calibration import config_data
from masa_vit.training.model_building import load_classifier

BUDGETS = {'1/3': 1 / 3, '1/2': 1 / 2, '2/3': 2 / 3}


def ways(num_layers: int, budget: float) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `masa_vit.compress`."""
    number = int(num_layers * budget)
    found: dict[str, dict[str, Any]] = {'Matrix PCA': {'num_atoms': number}}
    for how in ('uniform', 'kl', 'optimal', 'spectral', 'hierarchical'):
        found[f'+ groups, {how}'] = {'num_atoms': number // 2, 'groups': how, 'num_groups': 2}
    found['+ rotation'] = {'num_atoms': number, 'align': 'rotation'}
    for how in ('input', 'fisher'):
        found[f'+ data-aware, {how}'] = {'num_atoms': number, 'weighting': how}
    found['+ rotation, input'] = {'num_atoms': number, 'align': 'rotation', 'weighting': 'input'}
    for how, allocation, sweeps in (
        ('none', 'uniform', 1),
        ('input', 'uniform', 1),
        ('input', 'energy', 4),
        ('fisher', 'energy', 1),
        ('fisher', 'energy', 4),
    ):
        found[f'+ refinement, {how}, {allocation} ranks, {sweeps} sweeps'] = {
            'num_atoms': 'auto', 'budget': budget, 'residual_rank': allocation,
            'weighting': how, 'sweeps': sweeps,
        }  # fmt: skip
    found['+ rotation, refinement, fisher'] = {
        'num_atoms': 1, 'budget': budget, 'residual_rank': 'energy', 'weighting': 'fisher',
        'align': 'rotation',
    }  # fmt: skip
    return found


@torch.no_grad()
def per_layer_svd(model: Any, budget: float, weighting: str, allocation: str, images: Any) -> Any:
    """Each weight by itself as a product of low rank; whitened by its inputs: SVD-LLM's idea."""
    weights = stacked_weights(model)
    metrics = {}
    if weighting != 'none':
        statistics = collect_statistics(model, images, gradients=weighting == 'fisher')
        metrics = statistics.metrics(weights, weighting)
    numbers = int(budget * sum(weight.numel() for weight in weights.values()))
    ranks = allocate(weights, metrics, RankBudget(allocation, numbers))
    for name, weight in weights.items():
        rows = dense_weights(model)[name]
        for row, (up, down) in zip(
            rows, low_rank(weight, metrics.get(name), ranks[name]), strict=True
        ):
            row.copy_(up @ down)
    kept = sum(rank * 2 * rows.shape[-1] for name, rows in weights.items() for rank in ranks[name])
    return model, kept / sum(weight.numel() for weight in weights.values())


def main() -> None:
    """Run the ways that the file does not have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', metavar='CONFIG')
    parser.add_argument('checkpoint')
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--num-images', type=int, default=2048)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--budgets', nargs='+', choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument('--only', nargs='+', default=[''], help='parts of names')
    args = parser.parse_args()
    args.calibration = args.val = args.num_val = None

    def load() -> Any:
        return load_classifier(args.source, args.checkpoint).eval()

    model = load()
    data = config_data(args, model)
    assert data.validation is not None
    batches = list(data.validation())
    images, classes = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    rows = json.loads(args.json.read_text()) if args.json.exists() else []

    @torch.inference_mode()
    def predict(candidate: Any) -> torch.Tensor:
        return torch.cat([candidate(x).double().log_softmax(1) for x in images.split(250)])

    dense = predict(model)

    def measure(name: str, budget: str, candidate: Any, **more: Any) -> None:
        logs = predict(candidate)
        right = (logs.argmax(1) == classes).double()
        divergence = (dense.exp() * (dense - logs)).sum(1)
        row = {'budget': budget, 'name': name, **more}
        for half, start in (('even', 0), ('odd', 1)):
            row[half] = 100 * float(right[start::2].mean())
            row[f'kl_{half}'] = float(divergence[start::2].mean())
        rows.append(row)
        args.json.write_text(json.dumps(rows, indent=1))
        print(json.dumps(row), flush=True)

    def wanted(name: str, budget: str) -> bool:
        done = any((row['budget'], row['name']) == (budget, name) for row in rows)
        return not done and any(part in name for part in args.only)

    if wanted('dense', '1'):
        measure('dense', '1', model, kept=1.0)
    for budget in args.budgets:
        for how in ('none', 'input', 'fisher'):
            for allocation in ('uniform', 'energy'):
                name = f'SVD per layer, {how}, {allocation} ranks'
                if wanted(name, budget):
                    share = BUDGETS[budget]
                    alone = per_layer_svd(load(), share, how, allocation, data.calibration)
                    measure(name, budget, alone[0], kept=alone[1])
        for name, kwargs in ways(len(model.blocks), BUDGETS[budget]).items():
            if wanted(name, budget):
                started = time.time()
                result = compress_with_record(model, CompressionOptions(**kwargs), data.calibration)
                count = masa_vit.inspection.count_parameters(result.model)
                measure(
                    name, budget, masa_vit.fold(result.model).eval(),
                    kept=count.attention / count.dense_attention,
                    num_atoms=next(iter(result.solution.sharing.num_atoms.values())),
                    groups=result.solution.sharing.groups, cost=result.solution.cost,
                    seconds=round(time.time() - started, 1),
                )  # fmt: skip


if __name__ == '__main__':
    main()
