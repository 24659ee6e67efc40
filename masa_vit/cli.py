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
        0 when all went well, 1 after an error (told on stderr), 2 after wrong arguments, 75 after a
        training that a signal ended and that can go on, 130 after Ctrl-C elsewhere.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = None
    show_traceback = os.environ.get('MASA_VIT_TRACEBACK', '') not in ('', '0')
    try:
        parser, parsers = _parser()
        command = next((a for a in arguments if a in parsers), None)
        if command:
            _module(command).add_arguments(parsers[command])
        args = parser.parse_args(arguments)
        show_traceback |= args.traceback
        run = _COMMANDS[args.command][2] or _module(args.command).run
        return run(args)
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
    known = isinstance(error, (*ours, NotADirectoryError)) or (
        isinstance(error, OSError) and error.errno is None  # raised here, not by the system
    )
    return text if known and text else f'{type(error).__name__}: {text}'


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog='masa-vit', description='Vision transformers whose attention shares weights (MASA).'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    parsers = {}
    for name, (description, *_) in _COMMANDS.items():
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
    return parser, parsers


def _module(command: str) -> Any:
    """The module of a command, imported for that command alone."""
    return importlib.import_module(f'masa_vit.{_COMMANDS[command][1]}')


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


def _benchmark(args: argparse.Namespace) -> int:
    from masa_vit.benchmark import command

    _need('rich', *(['matplotlib'] if args.picture else []))
    if not args.model.endswith('.py'):
        return command.run(args)
    from masa_vit.engine.benchmark import DETECTOR

    return command.run(args, DETECTOR)


_Run = Callable[[argparse.Namespace], int]
# name: (help, module that adds the arguments, what runs if not that module); the arguments of the
# command called are added alone, so that `masa-vit inspect` needs no mmengine
_COMMANDS: dict[str, tuple[str, str, _Run | None]] = {
    'train': ('train a config', 'engine.train', None),
    'test': ('evaluate a checkpoint', 'engine.test', None),
    'predict': ('classify images, or detect objects in them', 'engine.predict', None),
    'compress': ('make a MASA model of a dense one', 'compression.command', _compress),
    'fold': ('turn a trained model into its dense twin', 'engine.fold', None),
    'export': ('write a model as files for others', 'export.command', _export),
    'inspect': (
        'look at the atoms and coefficients of a model',
        'inspection.command',
        _inspect,
    ),
    'compare': ('train several configs and print a table', 'engine.compare', None),
    'benchmark': ('measure a model against another', 'benchmark.command', _benchmark),
}

if __name__ == '__main__':
    sys.exit(main())
