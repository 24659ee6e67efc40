"""The command `masa-vit`: train, test, predict, compress, fold, export, inspect, compare, benchmark."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from masa_vit.examples import EXAMPLES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when all went well, 1 after an error (told on stderr), 2 after wrong arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = None
    show_traceback = os.environ.get('MASA_VIT_TRACEBACK', '') not in ('', '0')
    try:
        parser, parsers = _parser()
        command = next((a for a in arguments if a in parsers), None)
        if command:
            _COMMANDS[command][1](parsers[command])
        args = parser.parse_args(arguments)
        show_traceback |= args.traceback
        return args.run(args)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong arguments
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        hint = '; go on with --resume' if command in ('train', 'compare') else ''
        print(f'\ninterrupted{hint}', file=sys.stderr)
        return 130
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        else:
            print(f'masa-vit: error: {_message(error)}', file=sys.stderr)
            if not isinstance(error, (ValueError, OSError, ImportError)):
                print('(--traceback shows where)', file=sys.stderr)
        return 1


def _message(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    ours = (ValueError, ImportError, FileNotFoundError, FileExistsError, IsADirectoryError)
    known = isinstance(error, (*ours, NotADirectoryError))
    return text if known and text else f'{type(error).__name__}: {text}'


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog='masa-vit', description='Vision transformers whose attention shares weights (MASA).'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    parsers = {}
    for name, (description, _, run) in _COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parsers[name].add_argument(
            '--traceback', action='store_true', help='show the traceback of an error'
        )
        parsers[name].set_defaults(run=run)
    return parser, parsers


def _add_cfg_options(parser: argparse.ArgumentParser) -> None:
    from masa_vit.engine.config import DictAction

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='overrides, e.g. train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3',
    )


def _add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; pytorch: by torchrun',
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--seed', type=int, help='of all random numbers')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by batch size over auto_scale_lr.base_batch_size',
    )
    _add_cfg_options(parser)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='path, or masa_vit::cls/<name>.py')
    parser.add_argument('--work-dir', help='outputs (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help="go on from the work dir's last checkpoint, or from PATH",
    )
    _add_launcher(parser)
    _add_training(parser)


def _test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='path, or masa_vit::cls/<name>.py')
    parser.add_argument('checkpoint', help='a file that training wrote')
    parser.add_argument('--work-dir', help='log, metrics (default: work_dirs/<config name>)')
    parser.add_argument('--out', metavar='FILE.json', help='one more file for the metrics')
    parser.add_argument('--force', action='store_true', help='overwrite --out')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    _add_launcher(parser)
    _add_cfg_options(parser)


def _added_by(module: str) -> _Add:
    """The arguments that a module of the package adds; it is imported for its command alone."""
    return lambda parser: importlib.import_module(f'masa_vit.{module}').add_arguments(parser)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='two or more configs')
    parser.add_argument('--work-dir', help='outputs (default: work_dirs/compare_<time>)')
    parser.add_argument(
        '--resume', action='store_true', help='skip finished trainings, go on with the others'
    )
    _add_training(parser)


def _train(args: argparse.Namespace) -> int:
    from masa_vit.engine import train

    summary = train(
        args.config,
        args.work_dir,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        cfg_options=args.cfg_options,
    )
    if _is_rank_0():
        _print_outputs(summary)
    return 0


def _is_rank_0() -> bool:
    return os.environ.get('RANK', '0') == '0'  # the process group is gone by now


def _print_outputs(summary: dict[str, Any]) -> None:
    for name, values in summary['metrics'].items():
        if name.endswith('num_samples'):
            continue
        best = f'best {values["best"]:.4g}, epoch {values["best_epoch"]}'
        print(f'{name}: {values["last"]:.4g} ({best})')
    for name, path in summary.get('checkpoints', {}).items():
        print(f'{name + " checkpoint:":17}{path}')
    print(f'{"tensorboard:":17}tensorboard --logdir {summary["tensorboard"]}')
    print(f'{"summary:":17}{summary["summary"]}')


def _test(args: argparse.Namespace) -> int:
    from masa_vit.engine import test

    metrics = test(
        args.config,
        args.checkpoint,
        args.work_dir,
        out=args.out,
        force=args.force,
        amp=args.amp,
        launcher=args.launcher,
        cfg_options=args.cfg_options,
    )
    if _is_rank_0():
        for name, value in metrics.items():
            print(f'{name}: {value:.6g}' if isinstance(value, float) else f'{name}: {value}')
    return 0


def _predict(args: argparse.Namespace) -> int:
    from masa_vit.engine import predict

    return predict.run(args)


def _fold(args: argparse.Namespace) -> int:
    from masa_vit.engine import fold

    return fold.run(args)


def _compress(args: argparse.Namespace) -> int:
    from masa_vit.compression import command

    _need('rich', 'matplotlib', 'scipy')
    if not args.source.endswith('.py'):
        return command.run(args)
    from masa_vit.engine.compress import config_data
    from masa_vit.engine.export import load_classifier

    return command.run(args, load_classifier, config_data)


def _export(args: argparse.Namespace) -> int:
    from masa_vit.export import command

    if not args.source.endswith('.py'):
        return command.run(args)
    from masa_vit.engine.export import load_classifier

    return command.run(args, load_classifier)


def _need(*packages: str, extra: str = 'train') -> None:
    """Refuse at once what would fail at its end for want of a package of an extra."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f'this command needs {package}, which is not installed: pip install "masa-vit[{extra}]"'
            ) from error


def _inspect(args: argparse.Namespace) -> int:
    from masa_vit.inspection import command

    plotly = ['plotly'] if 'html' in args.format else []
    _need('rich', 'matplotlib', 'scipy', *plotly, extra='inspect')
    return command.run(args, _load_run)


def _load_run(config: str, checkpoint: str) -> Any:
    from masa_vit.engine.inspect import load_run  # mmengine: for checkpoints of trainings alone

    return load_run(config, checkpoint)


def _compare(args: argparse.Namespace) -> int:
    from masa_vit.engine.compare import compare

    compare(
        args.configs,
        args.work_dir,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        auto_scale_lr=args.auto_scale_lr,
        cfg_options=args.cfg_options,
    )
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    from masa_vit.benchmark import command

    _need('rich', *(['matplotlib'] if args.picture else []))
    if not args.model.endswith('.py'):
        return command.run(args)
    from masa_vit.engine.benchmark import DETECTOR

    return command.run(args, DETECTOR)


# name: (help, adds the arguments, runs); the arguments of the command called are added alone,
# so that `masa-vit inspect` needs no mmengine
_Add = Callable[[argparse.ArgumentParser], None]
_Run = Callable[[argparse.Namespace], int]
_COMMANDS: dict[str, tuple[str, _Add, _Run]] = {
    'train': ('train a config', _train_arguments, _train),
    'test': ('evaluate a checkpoint', _test_arguments, _test),
    'predict': (
        'classify images, or detect objects in them',
        _added_by('engine.predict'),
        _predict,
    ),
    'compress': ('make a MASA model of a dense one', _added_by('compression.command'), _compress),
    'fold': ('turn a trained model into its dense twin', _added_by('engine.fold'), _fold),
    'export': ('write a model as files for others', _added_by('export.command'), _export),
    'inspect': (
        'look at the atoms and coefficients of a model',
        _added_by('inspection.command'),
        _inspect,
    ),
    'compare': ('train several configs and print a table', _compare_arguments, _compare),
    'benchmark': ('measure a model against another', _added_by('benchmark.command'), _benchmark),
}

if __name__ == '__main__':
    sys.exit(main())
