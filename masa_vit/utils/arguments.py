"""Argument types that several commands share."""

from __future__ import annotations

import argparse
import ast
import importlib
from typing import Any


def parse_pair(text: str) -> tuple[str, Any]:
    """Parse `key=value`; a value that is not a Python literal is a string."""
    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form key=value')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def positive_int(text: str) -> int:
    """Read an integer of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not valid, expected an integer >= 1')
    return int(text)


def require(*packages: str, extra: str = 'train') -> None:
    """Check at the start that the optional packages of a command are installed.

    Raises:
        ImportError: Names the package and the extra.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f'this command needs {package}, which is not installed: pip install "masa-vit[{extra}]"'
            ) from error
