"""The command `masa-vit`: train, test, predict, compress, fold, export, inspect, compare, benchmark."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when all went well, 1 after an error (message on stderr), 2 after wrong arguments, 75 after a
        training that a signal stopped and that can be resumed, 130 after Ctrl-C elsewhere.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = None
    show_traceback = os.environ.get('MASA_VIT_TRACEBACK', '') not in ('', '0')
    try:
        parser, parsers = _parser()
        command = arguments[0] if arguments and arguments[0] in parsers else None
        if command:
            module = _module(command)
            parsers[command].epilog = module.EXAMPLES
            module.add_arguments(parsers[command])
        args = parser.parse_args(arguments)
        show_traceback |= args.traceback
        return _module(args.command).run(args)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong arguments
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        hint = '; continue with --resume' if command in ('train', 'compare') else ''
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
    for name, description in _COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            help=description,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parsers[name].add_argument(
            '--traceback', action='store_true', help='show the traceback of an error'
        )
    return parser, parsers


def _module(command: str) -> Any:
    """The module of a command, imported for that command alone."""
    return importlib.import_module(f'masa_vit.cli.{command}')


_COMMANDS = {
    'train': 'train a config',
    'data': "look at the boxes of a detector's data",
    'test': 'evaluate a checkpoint',
    'predict': 'classify images, or detect objects in them',
    'compress': 'make a MASA model of a dense one',
    'fold': 'turn a trained model into the dense model that computes the same',
    'export': 'write a model as files for others',
    'inspect': 'look at the atoms and coefficients of a model',
    'compare': 'train several configs and print a table',
    'benchmark': 'measure a model against another',
    'mmdet': 'run a tool of MMDetection',
}
"""Help of the commands; the module `masa_vit.cli.NAME` has EXAMPLES, `add_arguments` and `run`."""
