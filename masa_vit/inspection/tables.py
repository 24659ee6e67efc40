"""A report as tables: the summary, the terminal, and the long format of the CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from masa_vit.inspection.quantities import QUANTITIES
from masa_vit.inspection.report import Comparison, Report
from masa_vit.inspection.similarity import mean_off_diagonal
from masa_vit.inspection.summary import Summary

AXES = ('layer', 'other_layer', 'atom', 'other_atom', 'principal_atom', 'head', 'index')
"""Columns that locate a number in its array."""

COLUMNS = ('model', 'quantity', 'projection', *AXES, 'value')
"""Of the long format."""

SUMMARY = {
    'projection': '',
    'atoms': 'stored',
    'used': 'effective number of atoms of the dictionary',
    'of a layer': 'effective number of atoms of a layer, mean over layers',
    'spectral': 'effective number of atoms, however they are mixed',
    'dead': 'atoms that hardly any layer uses',
    'doubled': 'pairs of equal atoms',
    'cosine': 'mean cosine between the weights of different layers',
    'rank': 'effective rank of the weights, mean over layers',
    'Gaussian': 'effective rank of a Gaussian matrix of the same shape',
}
"""Columns of the summary -> their meaning."""

_FORMATS = {'atoms': 'd', 'cosine': '+.3f', 'rank': '.0f', 'Gaussian': '.0f'}


def summary_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    """Give a row for each projection, under `SUMMARY`; None where a number is not available."""
    for name, arrays in summary.projections.items():
        row: dict[str, Any] = dict.fromkeys(SUMMARY)
        row['projection'] = name.upper() if len(name) == 1 else name
        if (key := summary.dictionary_of.get(name)) is not None:
            row['atoms'] = arrays['coefficients'].shape[1]
            row['used'] = summary.dictionaries[key]['used_atoms'].item()
            row['of a layer'] = _mean(arrays['effective_atoms'])
            row['spectral'] = arrays['spectral_atoms'].item()
            row['dead'] = ', '.join(map(str, summary.dead[key])) or 'none'
            row['doubled'] = ', '.join(f'{a}={b}' for a, b in summary.doubled[key]) or 'none'
        if summary.depth > 1:
            row['cosine'] = mean_off_diagonal(arrays['weight_similarity'])
        row['rank'] = _mean(arrays['effective_rank'])
        row['Gaussian'] = arrays['gaussian_effective_rank'].item()
        yield row


def long_rows(report: Report) -> Iterator[dict[str, Any]]:
    """Give a row for each number of a report, under `COLUMNS`; not the history, nor pictures.

    `projection` is empty for the numbers of a whole model, and the name of the dictionary (that of
    its projections) for those of atoms.
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
    """Print the summaries, and C of each projection, on the terminal."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for name, summary in report.models.items():
        stored, dense = summary.attention_parameters, summary.dense_attention_parameters
        text = f'{summary.depth} layers, {stored:,} attention parameters'
        text += f' of {dense:,} (-{1 - stored / dense:.1%})' if stored < dense else ''
        console.print(f'[bold]{escape(name)}[/bold]: {text}', highlight=False)
        if note := report.notes.get(name):
            console.print(f'[yellow]{escape(note)}[/yellow]', highlight=False)
        console.print(_summary_table(summary))
        tables = [
            _coefficient_table(of, arrays['coefficients'])
            for of, arrays in summary.projections.items()
            if 'coefficients' in arrays
        ]
        console.print(Columns(tables))
    for comparison in report.comparisons:
        console.print(_comparison_table(comparison))


def _table(*heads: str, **options: Any) -> Any:
    from rich.table import Table

    table = Table(**options)
    for head in heads:
        table.add_column(head, justify='right', no_wrap=True)
    return table


def _summary_table(summary: Summary) -> Any:
    caption = (
        'effective numbers of atoms: used of the dictionary, mean of a layer, spectral (compare this '
        'one between runs); mean cosine between weights of layers; mean effective rank (of a '
        'Gaussian matrix)'
    )
    table = _table('', *[*SUMMARY][1:-1], caption=caption)
    for row in summary_rows(summary):
        *cells, rank, gaussian = (_text(column, value) for column, value in row.items())
        table.add_row(*cells, f'{rank} ({gaussian})')
    return table


def _text(column: str, value: Any) -> str:
    if value is None:
        return '-'
    return value if isinstance(value, str) else format(value, _FORMATS.get(column, '.1f'))


def _coefficient_table(name: str, coef: Any) -> Any:
    columns = map(str, range(coef.shape[1]))
    table = _table('', *columns, title=f'{name.upper()}: C, layer by atom')
    for layer, row in enumerate(coef.tolist()):
        table.add_row(str(layer), *(f'{value:+.2f}' for value in row))
    return table


def _comparison_table(comparison: Comparison) -> Any:
    from rich.markup import escape

    first, second, projections = comparison
    heads = ('', 'cosine of weights', 'largest angle', 'atoms matched', 'their cosine')
    table = _table(*heads, title=escape(f'{first} beside {second}'))
    for of, arrays in projections.items():
        cells = [of.upper(), '-', '-', '-', '-']
        if 'other_cosine' in arrays:
            cells[1] = f'{_mean(arrays["other_cosine"]):.3f}'
        if 'subspace_angles' in arrays:
            cells[2] = f'{float(arrays["subspace_angles"].max()):.1f}'
        if 'matched_atom' in arrays:
            matched = arrays['matched_atom'] >= 0
            cells[3] = f'{int(matched.sum())} of {len(matched)}'
            cells[4] = f'{_mean(arrays["matched_cosine"][matched]):.3f}'
        table.add_row(*cells)
    return table


def _mean(values: Any) -> float:
    return float(values.double().mean())
