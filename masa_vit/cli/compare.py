"""`masa-vit compare`: train several configs, or a table of rows and seeds, and compare them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from masa_vit.cli.config_arguments import add_training
from masa_vit.training.comparison import compare
from masa_vit.training.config_variants import load_variant
from masa_vit.training.configs import load_config
from masa_vit.training.run_table import is_table, load_table, select, train_runs
from masa_vit.training.stopping import exit_code_when_stopped
from masa_vit.training.table_costs import measure_costs
from masa_vit.training.table_report import FILES, markdown, write_report
from masa_vit.utils.arguments import positive_int
from masa_vit.utils.config_paths import resolve_config

EXAMPLES = """examples:
  masa-vit compare masa_vit::cls/vit_tiny_masa_s4_digits.py --with-dense
  masa-vit compare a.py b.py --work-dir work_dirs/pair --resume
  masa-vit compare table.py --work-dir work_dirs/table --jobs 2   # rows x seeds; again to continue"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit compare`."""
    parser.add_argument(
        'configs', nargs='+', metavar='CONFIG', help='configs, or one table of runs'
    )
    parser.add_argument(
        '--with-dense', action='store_true', help='also train the dense baseline of each config'
    )
    parser.add_argument('--work-dir', help='outputs (default: work_dirs/compare_<time>)')
    parser.add_argument(
        '--resume', action='store_true', help='skip finished trainings, continue the others'
    )
    parser.add_argument(
        '--jobs', type=positive_int, default=1, help='runs of a table at a time (default: 1)'
    )
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='train only these rows of a table')
    parser.add_argument(
        '--seeds', nargs='+', type=int, metavar='SEED', help='train only these seeds of a table'
    )
    parser.add_argument(
        '--no-costs',
        action='store_true',
        help='do not time the rows of a table (while other programs run, for example)',
    )
    add_training(parser)


@exit_code_when_stopped
def run(args: argparse.Namespace) -> int:
    """Run `masa-vit compare`."""
    if len(args.configs) == 1 and is_table(args.configs[0]):
        return _run_table(args)
    configs = [load_config(config) for config in args.configs]
    if args.with_dense:
        configs += [load_variant(config, dense=True) for config in args.configs]
    compare(
        configs,
        args.work_dir,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        auto_scale_lr=args.auto_scale_lr,
        cfg_options=args.cfg_options,
    )
    return 0


def _run_table(args: argparse.Namespace) -> int:
    if (
        args.amp
        or args.seed is not None
        or args.cfg_options
        or args.auto_scale_lr
        or args.with_dense
    ):
        raise ValueError(
            '--amp, --seed, --auto-scale-lr, --cfg-options and --with-dense are for configs: set these '
            'in the base or the rows of the table'
        )
    file = resolve_config(args.configs[0])
    folder = Path(args.work_dir or f'work_dirs/{file.stem}').resolve()
    table = load_table(file)
    runs = table.runs(folder)
    for row in table.rows:
        print(f'{row.name}: {row.parameters.total:,} parameters. {row.match}'.rstrip())
    failed = train_runs(select(runs, args.rows, args.seeds), args.jobs)
    costs = {} if failed or args.no_costs else measure_costs(table, folder)
    records = write_report(table, runs, folder, costs)
    print(markdown(table, records))
    print(f'{", ".join(FILES)} in {folder}')
    for run, output in failed.items():
        print(
            f'\n{run.row.name}, seed {run.seed} failed ({run.folder}):\n{output}', file=sys.stderr
        )
    return 1 if failed else 0
