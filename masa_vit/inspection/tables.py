"""A report as tables: on the terminal, and in long format."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from masa_vit.inspection import QUANTITIES, Summary
from masa_vit.inspection.report import Comparison, Report
from masa_vit.inspection.similarity import mean_off_diagonal

AXES = ('layer', 'other_layer', 'atom', 'other_atom', 'principal_atom', 'head', 'index')
"""Columns that say which number of an array a row holds."""

COLUMNS = ('model', 'quantity', 'projection', *AXES, 'value')
"""Of the long format."""


def long_rows(report: Report) -> Iterator[dict[str, Any]]:
    """Give a row for each number of a report, under `COLUMNS`; not the history, nor pictures.

    `projection` is empty for what is of the whole model, and the name of the dictionary (that of its
    projections) for what is of atoms.
    """
    for model, of, arrays, indices in report.scopes():
        for name, array in arrays.items():
            axes = QUANTITIES[name].axes
            if not set(axes) <= set(AXES):
                continue  # attention maps, and the linkage of the clustering
            places = [range(size) for size in array.shape]
            for place, value in zip(product(*places), array.flatten().tolist(), strict=True):
                row: dict[str, Any] = dict.fromkeys(COLUMNS, '')
                row |= dict(model=model, quantity=name, projection=of)
                row |= dict(zip(axes, place, strict=True)) | {'value': value}
                if 'index' in axes and 'singular_values' in name and indices is not None:
                    row['index'] = indices[place[-1]]
                yield row


def write_csv(report: Report, path: Path) -> None:
    """Write the long format."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(long_rows(report))


def print_report(report: Report) -> None:
    """Print the main figures, and C of each projection, on the terminal."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for name, summary in report.models.items():
        console.print(f'[bold]{escape(name)}[/bold]: {_headline(summary)}', highlight=False)
        if note := report.notes.get(name):
            console.print(f'[yellow]{escape(note)}[/yellow]', highlight=False)
        _print_summary(console, summary)
        _print_coefficients(console, summary)
    for comparison in report.comparisons:
        _print_comparison(console, comparison)


def _print_comparison(console: Any, comparison: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    first, second, projections = comparison
    table = Table(title=escape(f'{first} beside {second}'))
    heads = ('', 'cosine of weights', 'largest angle of spans', 'atoms matched', 'their cosine')
    for index, head in enumerate(heads):
        table.add_column(head, justify='right' if index else 'left')
    for of, arrays in projections.items():
        cells = [of.upper(), '-', '-', '-', '-']
        if 'other_cosine' in arrays:
            cells[1] = _format(_mean(arrays['other_cosine']), '.3f')
        if 'subspace_angles' in arrays:
            cells[2] = _format(arrays['subspace_angles'].max(), '.1f')
        if 'matched_atom' in arrays:
            matched = arrays['matched_atom'] >= 0
            cells[3] = f'{int(matched.sum())} of {len(matched)}'
            cells[4] = _format(_mean(arrays['matched_cosine'][matched]), '.3f')
        table.add_row(*cells)
    console.print(table)


def _headline(summary: Summary) -> str:
    stored, dense = summary.attention_parameters, summary.dense_attention_parameters
    text = f'{summary.depth} layers, {stored:,} attention parameters'
    return text + (f' of {dense:,} (-{1 - stored / dense:.1%})' if stored < dense else '')


def _print_summary(console: Any, summary: Summary) -> None:
    from rich.table import Table

    table = Table(
        caption='effective numbers of atoms: used of the dictionary, mean of a layer, spectral (compare '
        'this one between runs); mean cosine between weights of layers; mean effective rank (of a '
        'Gaussian matrix)'
    )
    heads = ('', 'atoms', 'used', 'of a layer', 'spectral', 'dead', 'doubled', 'cosine', 'rank')
    for head in heads:
        table.add_column(head, justify='right', no_wrap=True)
    for name, arrays in summary.projections.items():
        key = summary.dictionary_of.get(name)
        atoms = ['-'] * 6
        if key is not None:
            atoms = [
                str(arrays['coefficients'].shape[1]),
                _format(summary.dictionaries[key]['used_atoms'], '.1f'),
                _format(_mean(arrays['effective_atoms']), '.1f'),
                _format(arrays['spectral_atoms'], '.1f'),
                ', '.join(map(str, summary.dead[key])) or 'none',
                ', '.join(f'{a}={b}' for a, b in summary.doubled[key]) or 'none',
            ]
        cosine = mean_off_diagonal(arrays['weight_similarity'])
        rank, control = _mean(arrays['effective_rank']), arrays['gaussian_effective_rank']
        table.add_row(
            name.upper(),
            *atoms,
            _format(cosine, '+.3f') if summary.depth > 1 else '-',
            f'{_format(rank, ".0f")} ({_format(control, ".0f")})',
        )
    console.print(table)


def _print_coefficients(console: Any, summary: Summary) -> None:
    from rich.columns import Columns
    from rich.table import Table

    tables = []
    for name, arrays in summary.projections.items():
        if 'coefficients' not in arrays:
            continue
        table = Table(title=f'{name.upper()}: C, layer by atom')
        for header in ('', *map(str, range(arrays['coefficients'].shape[1]))):
            table.add_column(header, justify='right', no_wrap=True)
        for layer, row in enumerate(arrays['coefficients'].tolist()):
            table.add_row(str(layer), *(f'{value:+.2f}' for value in row))
        tables.append(table)
    if tables:
        console.print(Columns(tables))


def _mean(values: Any) -> float:
    return float(values.double().mean())


def _format(value: Any, form: str) -> str:
    return format(float(value), form)
