"""`masa-vit export`: a model as files for others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from masa_vit.export.graph import check_installed, check_suffix, export_onnx, export_torch
from masa_vit.export.hub_folder import FILES, export_folded, export_hub
from masa_vit.export.parity import DTYPES, Exported
from masa_vit.models.sources import add_source_arguments, load_named
from masa_vit.utils.staging import check_free, check_writable

EXAMPLES = """examples:
  masa-vit export my_config.py --checkpoint epoch_15.pth --format folded --out folded/
  masa-vit export compressed/ --format hub --bake --dtype bf16 --out small/
  masa-vit export compressed/ --format onnx-shared --out model.onnx
  masa-vit export vit_base_masa_s4 --checkpoint a.safetensors --format torch-export --out a.pt2"""


class Format(NamedTuple):
    """A form that a model is written in."""

    help: str
    export: Callable[..., Exported]
    suffix: str = ''  # '': a folder


FORMATS = {
    'folded': Format('plain timm model, a folder', export_folded),
    'hub': Format('MASA model (atoms, coefficients, the rest), a folder', export_hub),
    'onnx': Format('folded', export_onnx, '.onnx'),
    'onnx-shared': Format('atoms stored once', partial(export_onnx, shared=True), '.onnx'),
    'torch-export': Format('folded', export_torch, '.pt2'),
    'torch-export-shared': Format('atoms stored once', partial(export_torch, shared=True), '.pt2'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit export`."""
    add_source_arguments(parser)
    parser.add_argument('--out', type=Path, required=True, help='the folder, .onnx or .pt2 file')
    parser.add_argument(
        '--format',
        required=True,
        choices=FORMATS,
        metavar='FORMAT',
        help='; '.join(f'{name}: {entry.help}' for name, entry in FORMATS.items()),
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, default='fp32', help='in which weights are stored'
    )
    parser.add_argument(
        '--bake',
        action='store_true',
        help='for hub: coefficients in place of the MLP that computes them (others always do so)',
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit export`."""
    load_classifier = None
    if args.source.endswith('.py'):
        from masa_vit.training import model_building

        load_classifier = model_building.load_classifier
    _, export, suffix = FORMATS[args.format]
    if args.bake and args.format != 'hub':
        raise ValueError(f'--bake is for --format hub; {args.format} has no MLP in any case')
    # refused now, not after the model was loaded
    if suffix == '.onnx':
        check_installed()
    if suffix:
        check_suffix(args.out, suffix)
    folder, names = (args.out.parent, [args.out.name]) if suffix else (args.out, FILES)
    check_free(folder, names, args.force)
    check_writable(folder)
    model = load_named(args, load_classifier)
    options: dict[str, Any] = {'bake': True} if args.bake else {}
    exported = export(model, args.out, dtype=args.dtype, force=args.force, **options)
    print(f'largest difference from the model, over the largest output: {exported.difference:.2g}')
    if exported.rounding:
        print(f'of the model rounded to {args.dtype} from the model: {exported.rounding:.2g}')
    print(f'{exported.path}: {exported.size:,} bytes')
    return 0
