"""The report of a table of runs: Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from masa_vit.training.run_statistics import mean_and_spread, paired_difference, seeds_needed
from masa_vit.training.run_table import Row, Run, RunTable, create_on_meta, results
from masa_vit.utils.staging import write_atomically

_COSTS = (
    '- step time and peak memory (after imports) of training in float32: ratios to the reference'
)
FILES = ('table.md', 'table.csv', 'table.json', 'table.png')


def report(
    table: RunTable, runs: Sequence[Run], costs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a record per row: counts, costs, and for each metric the statistics over seeds.

    Keys: ``name``, ``attention_parameters``, ``total_parameters``, ``gflops`` (forward pass of one
    image, multiply and add counted as two), ``step_time``, ``peak_memory`` (see `measure_costs`),
    ``match``, ``seeds``, ``commits``, and ``metrics``: metric -> ``values`` (by seed),
    ``mean``, ``spread``, ``difference`` (paired, to the reference), ``low``, ``high`` (95 % interval),
    ``verdict``.
    """
    records: dict[str, dict[str, Any]] = {
        row.name: {**_counts(row), **costs.get(row.name, {})} for row in table.rows
    }
    for metric in table.metrics:
        by_row = {row.name: values for row, values in results(runs, metric)}
        for name, values in by_row.items():
            if values:
                reference = by_row[table.reference] if name != table.reference else {}
                records[name]['metrics'][metric] = _statistics(
                    values, reference, table.bounds.get(metric)
                )
    for run in runs:
        if (summary := run.summary()).get('finished'):
            record = records[run.row.name]
            record['seeds'].append(run.seed)
            record['commits'] = sorted({*record['commits'], str(summary['commit'])})
    return [*records.values()]


def _counts(row: Row) -> dict[str, Any]:
    return {
        'name': row.name,
        'attention_parameters': row.parameters.attention,
        'total_parameters': row.parameters.total,
        'gflops': _gflops(row),
        'step_time': None,
        'peak_memory': None,
        'match': row.match,
        'seeds': [],
        'commits': [],
        'metrics': {},
    }


def _gflops(row: Row) -> float:
    model = create_on_meta(row.config).eval()
    embed = model.patch_embed
    image = torch.empty(1, embed.proj.in_channels, *embed.img_size, device='meta')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 1e9


def _statistics(
    values: dict[int, float], reference: dict[int, float], bound: float | None
) -> dict[str, Any]:
    mean, spread = mean_and_spread(values)
    record: dict[str, Any] = {'values': values, 'mean': mean, 'spread': spread}
    if found := paired_difference(values, reference):
        record |= {
            'difference': found.mean,
            'difference_spread': found.spread,
            'low': found.low,
            'high': found.high,
            'verdict': found.verdict(bound),
        }
    return record


def seeds_sentence(records: Sequence[dict[str, Any]], metric: str, difference: float = 1.0) -> str:
    """Return how many seeds would show a difference, from the spread of the paired differences."""
    spreads = [
        spread
        for record in records
        if (spread := record['metrics'].get(metric, {}).get('difference_spread'))
        and math.isfinite(spread)
    ]
    if not spreads:
        return 'Two seeds or more give the spread, and with it the number of seeds that one needs.'
    typical = math.sqrt(sum(spread**2 for spread in spreads) / len(spreads))
    number = seeds_needed(typical, difference)
    return (
        f'The paired differences in {metric} have a standard deviation of {typical:.3g} over seeds: a '
        f'difference of {difference:g} needs '
        f'{"more than 10,000" if number is None else number} seeds (5 %, power 80 %).'
    )


def markdown(table: RunTable, records: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown, with the caveats below."""
    header = ['row', 'seeds']
    for metric in table.metrics:
        header += [metric, f'to {table.reference} [95 %]', '']
    header += ['attention parameters', 'total parameters', 'GFLOPs', 'step time', 'peak memory']
    lines = [header, ['---'] * 2 + ['---:'] * (len(header) - 2)]
    for record in records:
        cells = [record['name'], str(len(record['seeds']))]
        for metric in table.metrics:
            cells += _cells(record['metrics'].get(metric))
        cells += [f'{record[key]:,}' for key in ('attention_parameters', 'total_parameters')]
        ratios = [record[key] for key in ('step_time', 'peak_memory')]
        cells += [f'{record["gflops"]:.3g}', *('' if r is None else f'x{r:.2f}' for r in ratios)]
        lines.append(cells)
    text = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    notes = [f'- {r["name"]}: {r["match"]}' for r in records if r['match']]
    commits = sorted({commit for record in records for commit in record['commits']})
    points = next((m for m in table.metrics if 'top' in m), table.metrics[0])
    sentence = seeds_sentence(records, points)
    return '\n'.join(
        [text, '', sentence, '', *notes, _COSTS, f'- commits: {", ".join(commits) or "none"}', '']
    )


def _cells(statistics: dict[str, Any] | None) -> list[str]:
    if statistics is None:
        return ['-', '', '']
    value = f'{statistics["mean"]:.4g}'
    if math.isfinite(statistics['spread']):
        value += f' +- {statistics["spread"]:.2g}'
    if 'difference' not in statistics:
        return [value, '', '']
    low, high = statistics['low'], statistics['high']
    interval = f' [{low:+.2g}, {high:+.2g}]' if math.isfinite(low) else ''
    return [value, f'{statistics["difference"]:+.3g}{interval}', statistics['verdict']]


def write_report(
    table: RunTable, runs: Sequence[Run], folder: Path, costs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write `table.md`, `table.csv`, `table.json` and `table.png`; return the records."""
    records = report(table, runs, costs)
    write_atomically(folder / 'table.md', markdown(table, records))
    content = json.dumps({'reference': table.reference, 'rows': records}, indent=2)
    write_atomically(folder / 'table.json', content + '\n')
    write_atomically(folder / 'table.csv', _csv(table, records))
    _draw(table, records, folder / 'table.png')
    return records


def _csv(table: RunTable, records: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    counts = ['attention_parameters', 'total_parameters', 'gflops', 'step_time', 'peak_memory']
    writer.writerow(['row', 'seed', *table.metrics, *counts])
    for record in records:
        for seed in record['seeds']:
            values = [
                record['metrics'].get(metric, {}).get('values', {}).get(seed)
                for metric in table.metrics
            ]
            writer.writerow([record['name'], seed, *values, *(record[key] for key in counts)])
    return out.getvalue()


def _draw(table: RunTable, records: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    metric = next((m for m in table.metrics if 'top' in m), table.metrics[0])
    for record in records:
        if statistics := record['metrics'].get(metric):
            x, spread = record['total_parameters'], statistics['spread']
            axes.errorbar(x, statistics['mean'], spread if math.isfinite(spread) else None, fmt='o')
            place = (5, 5)
            axes.annotate(
                record['name'], (x, statistics['mean']), xytext=place, textcoords='offset points'
            )
    axes.set(xlabel='parameters of the model', ylabel=f'{metric}, mean and standard deviation')
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
