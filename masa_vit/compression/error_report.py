"""The loss of a compression: numbers, a table and a picture of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from masa_vit.compression.alignment import align, allowed, gaussian_like
from masa_vit.compression.building import sharing_args
from masa_vit.compression.image_data import Accuracy
from masa_vit.compression.metric import Metric, Statistics
from masa_vit.compression.pipeline import Compression
from masa_vit.compression.solver import Solution, solve
from masa_vit.compression.source_weights import stacked_weights
from masa_vit.inspection import count_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_logger = logging.getLogger(__name__)

LOSSY_TOP1 = 2.0
"""Lost points of top-1 above which a report recommends fine-tuning."""

_LOSSY_OUTPUT = 0.1
"""The same for the mean relative error of the outputs, where top-1 is not known."""

_LOSSY_ENERGY = 0.9
"""The share of energy below which it does, without calibration images."""

Report = dict[str, Any]
"""The content of `report.json`: see `make_report`."""


def make_report(
    compression: Compression,
    top1: Mapping[str, Accuracy] | None = None,
    control: bool = True,
    statistics: Statistics | None = None,
) -> Report:
    """Measure a compression.

    Args:
        compression: The result of `compress_with_record`.
        top1: Of the model 'before' and 'after', and of any more.
        control: Compress Gaussian matrices of the same shapes and norms in the same way too, for
            comparison: takes as long as the fit.
        statistics: Of the dense model (the aligned one, `compression.dense`) on calibration images, for
            the errors of the outputs, without a weighting.

    Returns:
        A dict for JSON: `sharing` (the arguments of the model), `parameters` (attention and total,
        before and after), `weighting`, `rows` (projection, layers, num_atoms, mean rank, energy kept
        and that of Gaussian matrices, both in the metric of the fit, relative error of the outputs on
        the calibration images), `energy` and `gaussian` over all, `cost` (1 - energy), `alignment` (the
        share of energy that plain atoms capture, before and after), `top1` in percent, `top1_images`
        (their numbers), and the verdict, `too_lossy`, with `why`.
    """
    solution = compression.solution
    statistics = compression.statistics or statistics
    metrics = _metrics_on_cpu(compression)
    stacked = stacked_weights(compression.dense)
    weights = {name: weight for name, weight in stacked.items() if name in solution.fits}
    sources = {'': (weights, solution)}
    if control:
        sources['gaussian'] = _fit_gaussian(compression, stacked)
    rows: list[dict[str, Any]] = []
    energies = {key: torch.zeros(2, dtype=torch.float64) for key in sources}  # (kept, total)
    for name in weights:
        for index, layers in enumerate(solution.sharing.groups):
            fit, metric = solution.fits[name][index], metrics[name].of(layers)
            row: dict[str, Any] = {
                'projection': name,
                'layers': list(layers),
                'num_atoms': len(fit.atoms),
                'mean_rank': sum(up.shape[1] for up, _ in fit.residual) / len(layers),
            }
            for key, (matrices, found) in sources.items():
                matrix, fitted = matrices[name][layers], found.fits[name][index].weights().cpu()
                total = float(metric.energy(matrix).sum()) or 1e-300
                kept = total - float(metric.energy(matrix - fitted).sum())
                row[key or 'energy'] = kept / total
                energies[key] += torch.tensor([kept, total])
            if statistics is not None:
                moments = statistics.inputs[name][layers].cpu()
                fitted = fit.weights().cpu()
                row['output_error'] = _output_error(weights[name][layers], fitted, moments)
            rows.append(row)
    report: Report = {
        'sharing': sharing_args(solution),
        'parameters': {
            'dense': asdict(count_parameters(compression.dense)),
            'compressed': asdict(count_parameters(compression.model)),
        },
        'rows': rows,
        'weighting': compression.options.weighting,
        'cost': solution.cost,
        **{key or 'energy': float(kept / total) for key, (kept, total) in energies.items()},
    }
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
    report.setdefault('top1_images', {})[name] = accuracy.num_images  # missing in older reports


def _fit_gaussian(
    compression: Compression, stacked: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Solution]:
    """Fit Gaussian matrices with the norms of the weights, aligned and compressed as these."""
    _logger.info('fitting Gaussian matrices in the same way, for comparison')
    groups, num_atoms, ranks = compression.solution.sharing
    noise = gaussian_like(stacked)
    numbers = next(iter(num_atoms.values()))
    if compression.options.align is not None:
        can = allowed(compression.dense)
        noise = align(noise, can, numbers, groups, ''.join(num_atoms)).transform(noise)
    own = ranks if any(map(any, ranks.values())) else None
    rows = {name: [*noise[name]] for name in num_atoms}
    metrics = None if compression.metrics is None else _metrics_on_cpu(compression)
    return noise, solve(rows, groups, numbers, own, metrics, compression.solution.sweeps)


def _metrics_on_cpu(compression: Compression) -> dict[str, Metric]:
    metrics = compression.metrics or dict.fromkeys(compression.solution.fits, Metric())
    return {
        name: Metric(*(None if factor is None else factor.cpu() for factor in metric))
        for name, metric in metrics.items()
    }


def _output_error(weights: torch.Tensor, fitted: torch.Tensor, moments: torch.Tensor) -> float:
    """Return the relative squared error of the outputs, averaged over layers."""
    left = weights - fitted
    lost = ((left @ moments) * left).sum((1, 2))
    return float((lost / ((weights @ moments) * weights).sum((1, 2)).clamp(min=1e-300)).mean())


def _verdict(report: Report) -> tuple[bool, str]:
    """Return (needs fine-tuning, reason)."""
    top1 = report['top1']
    if 'before' in top1 and 'after' in top1:
        lost = top1['before'] - top1['after']
        return lost > LOSSY_TOP1, f'{lost:.1f} points of top-1 are lost'
    errors = [row['output_error'] for row in report['rows'] if 'output_error' in row]
    if errors:
        error = sum(errors) / len(errors)
        return error > _LOSSY_OUTPUT, f'the outputs of the projections are off by {error:.0%}'
    energy = report['energy']
    return energy < _LOSSY_ENERGY, f'{energy:.0%} of the energy of the weights is kept'


def make_table(report: Report) -> Table:
    """Return the rows of a report as a table for the terminal."""
    from rich.table import Table

    table = Table(title='Energy of the weights that is kept' + _weighting(report))
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
            *(
                f'{row[key]:.1%}' if key in row else ''
                for key in ('energy', 'gaussian', 'output_error')
            ),
        )
    return table


def _weighting(report: Report) -> str:
    return '' if report['weighting'] == 'none' else f', weighted by {report["weighting"]}'


def describe(report: Report) -> list[str]:
    """Return the other figures of a report as lines."""
    dense, compressed = (report['parameters'][key] for key in ('dense', 'compressed'))
    figures = {}
    for key in ('attention', 'total'):
        share = 1 - compressed[key] / dense[key]
        figures[f'{key} parameters'] = f'{dense[key]:,} -> {compressed[key]:,} (-{share:.1%})'
    figures['energy kept'] = f'{report["energy"]:.1%}'
    if 'gaussian' in report:
        figures['energy kept'] += f' (of Gaussian matrices: {report["gaussian"]:.1%})'
    if 'alignment' in report:
        before, after = report['alignment']['before'], report['alignment']['after']
        figures['alignment'] = f'atoms alone capture {before:.1%} -> {after:.1%}'
    if report['top1']:
        names = sorted(report['top1'], key=_moment)
        runs = groupby(names, key=report.get('top1_images', {}).get)
        figures['top-1'] = ', '.join(
            ', '.join(f'{name} {report["top1"][name]:.2f}' for name in run)
            + (f' ({count:,} images)' if count else '')
            for count, run in runs
        )
    verdict = 'needs fine-tuning' if report['too_lossy'] else 'usable without fine-tuning'
    figures['verdict'] = f'{verdict} ({report["why"]})'
    return [f'{name + ":":22}{text}' for name, text in figures.items()]


def draw(report: Report) -> Figure:
    """Draw the energy kept, that of Gaussian matrices, and the accuracies, if known."""
    from matplotlib.figure import Figure

    rows, top1 = report['rows'], report['top1']
    labels = [
        row['projection'].upper()
        + (f'\n{row["layers"][0]}-{row["layers"][-1]}' if len(rows) > len('qkvo') else '')
        for row in rows
    ]
    widths = [max(4.0, 1.5 + 0.6 * len(rows)), *([3.5] if top1 else [])]
    figure = Figure(figsize=(sum(widths), 3.4), layout='constrained')
    ax, *others = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    places = range(len(rows))
    ax.bar([p - 0.2 for p in places], [100 * row['energy'] for row in rows], 0.4, label='weights')
    if 'gaussian' in report:
        ax.bar(
            [p + 0.2 for p in places], [100 * row['gaussian'] for row in rows], 0.4, color='0.75',
            hatch='//', edgecolor='0.4', label='Gaussian matrices',
        )  # fmt: skip
    ax.set(ylabel='energy kept, %', ylim=(0, 100), title=_weighting(report).lstrip(', '))
    ax.set_xticks(list(places), labels)
    figure.legend(loc='outside lower left', ncols=2, fontsize='small')
    for ax in others:
        names = sorted(top1, key=_moment)
        bars = ax.bar(range(len(names)), [top1[name] for name in names], 0.6, color='0.4')
        ax.bar_label(bars, fmt='%.1f', fontsize='small')
        ax.set(ylabel='top-1, %', ylim=(0, 100), xticks=range(len(names)))
        ax.set_xticklabels(names, rotation=30, ha='right')
    return figure


def _moment(name: str) -> tuple[int, int]:
    """Return the sort key of an accuracy: before, after, then the epochs."""
    order = ['before', 'without residual', 'after']
    return (order.index(name), 0) if name in order else (len(order), int(name.split()[-1]))
