"""What the arguments of several commands have in common."""

from __future__ import annotations

import argparse
import ast
from typing import Any


def parse_pair(text: str) -> tuple[str, Any]:
    """Read `key=value`; a value that is no Python literal is a string."""
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
