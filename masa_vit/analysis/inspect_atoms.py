"""Show the atom coefficients of a model or checkpoint: table, CSV, picture."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path

import timm
import torch

from masa_vit.analysis.extract import coefficients
from masa_vit.analysis.plots import plot_coefficients
from masa_vit.models import read_state_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the tool."""
    parser.add_argument(
        'source',
        metavar='MODEL_OR_CHECKPOINT',
        help='a timm model name (shows its init) or a checkpoint, .pth or .safetensors',
    )
    parser.add_argument(
        '--out', required=True, type=Path, help='folder for the CSV and the picture'
    )


def run(args: argparse.Namespace) -> int:
    """Print the table and write `coefficients.csv` and `coefficients.png`."""
    coefs = load_coefficients(args.source)
    print_coefficients(coefs)
    args.out.mkdir(parents=True, exist_ok=True)
    table, picture = args.out / 'coefficients.csv', args.out / 'coefficients.png'
    write_csv(coefs, table)
    plot_coefficients(coefs, title=Path(args.source).name).savefig(picture, dpi=150)
    print(f'table:   {table}\npicture: {picture}')
    return 0


def load_coefficients(source: str) -> dict[str, torch.Tensor]:
    """Return C (L, S) per projection of a checkpoint, or of a new model of that name.

    Raises:
        FileNotFoundError: If `source` is neither a file nor a model's name.
        ValueError: If nothing is shared, or the file cannot be read.
    """
    if not Path(source).is_file() and timm.is_model(source):
        coefs = coefficients(timm.create_model(source))
    elif Path(source).exists() or Path(source).suffix:
        coefs = coefficients(read_state_dict(source))
    else:
        raise FileNotFoundError(
            f'{source!r} is neither a checkpoint nor a model that timm knows '
            "(timm.list_models('*masa*') lists ours)"
        )
    if not coefs:
        raise ValueError(
            f'{source!r} has no atom coefficients: nothing is shared in it (dense model)'
        )
    return coefs


def write_csv(coefs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write the coefficients in long format: projection, layer, atom, coefficient."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['projection', 'layer', 'atom', 'coefficient'])
        for name, coef in coefs.items():
            for layer, row in enumerate(coef.tolist()):
                writer.writerows([name, layer, atom, value] for atom, value in enumerate(row))


def print_coefficients(coefs: Mapping[str, torch.Tensor]) -> None:
    """Print a table per projection, side by side: layers down, atoms across."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.table import Table

    tables = []
    for name, coef in coefs.items():
        table = Table(title=f'{name.upper()}: layer by atom')
        for header in ('', *map(str, range(coef.shape[1]))):
            table.add_column(header, justify='right', no_wrap=True)
        for layer, row in enumerate(coef.tolist()):
            table.add_row(str(layer), *(f'{value:+.2f}' for value in row))
        tables.append(table)
    Console().print(Columns(tables))
