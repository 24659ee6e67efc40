"""What a compression costs and keeps: numbers, a table and a picture of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from masa_vit.compression.accuracy import Accuracy
from masa_vit.compression.alignment import allowed, gaussian_like
from masa_vit.compression.building import sharing_args
from masa_vit.compression.metric import Metric, Statistics
from masa_vit.compression.pipeline import Compression, align_weights
from masa_vit.compression.solver import Solution, solve
from masa_vit.compression.source_weights import stacked_weights
from masa_vit.inspection import count_parameters
from masa_vit.models.sharing_args import PROJECTIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_logger = logging.getLogger(__name__)

LOSSY = 2.0
"""Points of top-1 that may be lost before a report says that a compressed model needs fine-tuning."""

_LOSSY_OUTPUT = 0.1
"""Where no top-1 is known: the mean relative error of the outputs, above which it does."""

_LOSSY_ENERGY = 0.9
"""Where no calibration images are given either: the share of energy, below which it does."""

Report = dict[str, Any]
"""As written to `report.json`: see `make_report`."""


def make_report(
    compression: Compression,
    top1: Mapping[str, Accuracy] | None = None,
    control: bool = True,
    statistics: Statistics | None = None,
) -> Report:
    """Measure a compression.

    Args:
        compression: What `compress_with_record` returned.
        top1: Of the model 'before' and 'after', and of any more.
        control: Compress Gaussian matrices of the same shapes and norms in the same way too, for
            comparison: takes as long again as the fit.
        statistics: Of the dense model (the aligned one, `compression.dense`) on calibration images, for
            the errors of outputs, where errors were not weighed.

    Returns:
        A dict for JSON: `sharing` (the arguments of the model), `parameters` (attention and total,
        before and after), `weighting`, `rows` (projection, layers, num_atoms, mean rank, energy kept
        and that of Gaussian matrices, both in the metric of the fit, relative error of the outputs on
        the calibration images), `energy` and `gaussian` over all, `cost` (1 - energy), `alignment` (the
        share of energy that plain atoms capture, before and after), `top1` in percent, `top1_images`
        (on how many), and the verdict, `too_lossy`, with `why`.
    """
    solution = compression.solution
    statistics = compression.statistics or statistics
    weights = {
        name: weight
        for name, weight in stacked_weights(compression.dense).items()
        if name in solution.fits
    }
    gaussian = _gaussian_fits(compression, weights) if control else None
    metrics = _on_cpu(compression)
    rows = []
    sums = dict.fromkeys(('kept', 'total', 'kept_gaussian', 'total_gaussian'), 0.0)
    for name, weight in weights.items():
        for index, layers in enumerate(solution.sharing.groups):
            fit, of_group, metric = (
                solution.fits[name][index],
                weight[layers],
                metrics[name].of(layers),
            )
            fitted = fit.weights().cpu()
            kept, total = _kept(of_group, fitted, metric)
            row: dict[str, Any] = {
                'projection': name,
                'layers': list(layers),
                'num_atoms': len(fit.atoms),
                'mean_rank': sum(up.shape[1] for up, _ in fit.residual) / len(layers),
                'energy': kept / total,
            }
            sums['kept'], sums['total'] = sums['kept'] + kept, sums['total'] + total
            if gaussian is not None:
                noise, of_noise = gaussian
                kept, total = _kept(
                    noise[name][layers], of_noise.fits[name][index].weights(), metric
                )
                row['gaussian'] = kept / total
                sums['kept_gaussian'] += kept
                sums['total_gaussian'] += total
            if statistics is not None:
                moments = statistics.inputs[name][layers].cpu()
                row['output_error'] = _output_error(of_group, fitted, moments)
            rows.append(row)
    report: Report = {
        'sharing': sharing_args(solution),
        'parameters': {
            'dense': asdict(count_parameters(compression.dense)),
            'compressed': asdict(count_parameters(compression.model)),
        },
        'rows': rows,
        'weighting': compression.options.weighting,
        'energy': sums['kept'] / sums['total'],
        'cost': solution.cost,
    }
    if gaussian is not None:
        report['gaussian'] = sums['kept_gaussian'] / sums['total_gaussian']
    if compression.alignment is not None:
        shares = compression.alignment.energy
        report['alignment'] = {'before': shares[0], 'after': shares[-1]}
    if statistics is not None:
        report['calibration_images'] = statistics.num_images
    report['top1'], report['top1_images'] = {}, {}
    for name, accuracy in (top1 or {}).items():
        add_top1(report, name, accuracy)
    report['too_lossy'], report['why'] = _verdict(report)
    return report


def add_top1(report: Report, name: str, accuracy: Accuracy) -> None:
    """Add an accuracy: 'before', 'after', 'without residual' or 'epoch 3'."""
    report['top1'][name] = accuracy.percent
    report.setdefault('top1_images', {})[name] = accuracy.num_images  # older reports have none


def _gaussian_fits(
    compression: Compression, weights: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Solution]:
    """Gaussian matrices with the norms of the weights, aligned and compressed as these were."""
    _logger.info('fitting Gaussian matrices in the same way, for comparison')
    groups, num_atoms, ranks = compression.solution.sharing
    noise = gaussian_like(stacked_weights(compression.dense))
    numbers = next(iter(num_atoms.values()))
    if compression.options.align is not None:
        may, names = allowed(compression.dense), ''.join(weights)
        found = align_weights(noise, may, names, numbers, groups, compression.options.align)
        noise = found.transform(noise)
    own = ranks if any(map(any, ranks.values())) else None
    rows = {name: [*noise[name]] for name in weights}
    metrics = None if compression.metrics is None else _on_cpu(compression)
    return noise, solve(rows, groups, numbers, own, metrics, compression.solution.sweeps)


def _on_cpu(compression: Compression) -> dict[str, Metric]:
    """The metric of every projection; without one, all directions are alike."""
    return {
        name: Metric(*(None if factor is None else factor.cpu() for factor in metric))
        for name, metric in (compression.metrics or dict.fromkeys(PROJECTIONS, Metric())).items()
    }


def _kept(weights: torch.Tensor, fitted: torch.Tensor, metric: Metric) -> tuple[float, float]:
    """Energy that is kept, and all there was, in a metric."""
    total = max(float(metric.energy(weights).sum()), 1e-300)
    return total - float(metric.energy(weights - fitted).sum()), total


def _output_error(weights: torch.Tensor, fitted: torch.Tensor, moments: torch.Tensor) -> float:
    """Relative squared error of the outputs, in the mean over layers."""
    left = weights - fitted
    lost = ((left @ moments) * left).sum((1, 2))
    return float((lost / ((weights @ moments) * weights).sum((1, 2)).clamp(min=1e-300)).mean())


def _verdict(report: Report) -> tuple[bool, str]:
    """Return (needs fine-tuning, reason)."""
    top1 = report['top1']
    if 'before' in top1 and 'after' in top1:
        lost = top1['before'] - top1['after']
        return lost > LOSSY, f'{lost:.1f} points of top-1 are lost'
    errors = [row['output_error'] for row in report['rows'] if 'output_error' in row]
    if errors:
        error = sum(errors) / len(errors)
        return error > _LOSSY_OUTPUT, f'the outputs of the projections are off by {error:.0%}'
    energy = report['energy']
    return energy < _LOSSY_ENERGY, f'{energy:.0%} of the energy of the weights is kept'


def make_table(report: Report) -> Table:
    """The rows of a report, for the terminal."""
    from rich.table import Table

    table = Table(title='Energy of the weights that is kept' + _weighed(report))
    table.add_column('projection')
    table.add_column('layers')
    for name in ('atoms', 'mean rank', 'kept', 'of Gaussian matrices', 'error of outputs'):
        table.add_column(name, justify='right')
    for row in report['rows']:
        layers = row['layers']
        run = layers == [*range(layers[0], layers[-1] + 1)]
        table.add_row(
            row['projection'].upper(),
            f'{layers[0]} to {layers[-1]}' if run else ', '.join(map(str, layers)),
            str(row['num_atoms']),
            f'{row["mean_rank"]:.1f}',
            f'{row["energy"]:.1%}',
            f'{row["gaussian"]:.1%}' if 'gaussian' in row else '',
            f'{row["output_error"]:.1%}' if 'output_error' in row else '',
        )
    return table


def _weighed(report: Report) -> str:
    return '' if report['weighting'] == 'none' else f', weighed by {report["weighting"]}'


def describe(report: Report) -> list[str]:
    """The figures of a report that stand beside its table, as lines."""
    dense, compressed = (report['parameters'][key] for key in ('dense', 'compressed'))
    lines = []
    for key in ('attention', 'total'):
        share = 1 - compressed[key] / dense[key]
        counts = f'{dense[key]:,} -> {compressed[key]:,} (-{share:.1%})'
        lines.append(f'{key + " parameters:":22}{counts}')
    energy = f'{"energy kept:":22}{report["energy"]:.1%}'
    if 'gaussian' in report:
        energy += f' (Gaussian matrices: {report["gaussian"]:.1%}, which is no redundancy)'
    lines.append(energy)
    if 'alignment' in report:
        before, after = report['alignment']['before'], report['alignment']['after']
        lines.append(f'{"alignment:":22}atoms alone capture {before:.1%} -> {after:.1%}')
    if report['top1']:
        lines.append(f'{"top-1:":22}{_told_top1(report)}')
    verdict = 'too lossy to use untuned: fine-tune it' if report['too_lossy'] else 'usable untuned'
    lines.append(f'{"verdict:":22}{verdict} ({report["why"]})')
    return lines


def _told_top1(report: Report) -> str:
    """The accuracies in order, and after each run of them the number of their images."""
    names = sorted(report['top1'], key=_moment)
    runs = groupby(names, key=report.get('top1_images', {}).get)
    return ', '.join(
        ', '.join(f'{name} {report["top1"][name]:.2f}' for name in run)
        + (f' ({count:,} images)' if count else '')
        for count, run in runs
    )


def draw(report: Report) -> Figure:
    """Draw the energy kept, beside that of Gaussian matrices, and the accuracies, where there are."""
    from matplotlib.figure import Figure

    rows = report['rows']
    labels = [
        row['projection'].upper()
        + (f'\n{row["layers"][0]}-{row["layers"][-1]}' if len(rows) > len('qkvo') else '')
        for row in rows
    ]
    width = max(4.0, 1.5 + 0.6 * len(rows))
    if report['top1']:
        figure = Figure(figsize=(width + 3.5, 3.4), layout='constrained')
        ax, second = figure.subplots(1, 2, width_ratios=[width, 3.5])
    else:
        figure = Figure(figsize=(width, 3.4), layout='constrained')
        ax = figure.subplots()
    places = range(len(rows))
    ax.bar([p - 0.2 for p in places], [100 * row['energy'] for row in rows], 0.4, label='weights')
    if 'gaussian' in report:
        heights = [100 * row['gaussian'] for row in rows]
        ax.bar(
            [p + 0.2 for p in places], heights, 0.4, color='0.75', hatch='//',
            edgecolor='0.4', label='Gaussian matrices',
        )  # fmt: skip
    ax.set(ylabel='energy kept, %', ylim=(0, 100), title=_weighed(report).lstrip(', '))
    ax.set_xticks(list(places), labels)
    figure.legend(loc='outside lower left', ncols=2, fontsize='small')
    if report['top1']:
        _draw_top1(report['top1'], second)
    return figure


def _draw_top1(top1: Mapping[str, float], ax: Any) -> None:
    names = sorted(top1, key=_moment)
    bars = ax.bar(range(len(names)), [top1[name] for name in names], 0.6, color='0.4')
    ax.bar_label(bars, fmt='%.1f', fontsize='small')
    ax.set(ylabel='top-1, %', ylim=(0, 100), xticks=range(len(names)))
    ax.set_xticklabels(names, rotation=30, ha='right')


def _moment(name: str) -> tuple[int, int]:
    """Where an accuracy stands among the others."""
    order = ['before', 'without residual', 'after']
    return (order.index(name), 0) if name in order else (len(order), int(name.split()[-1]))
