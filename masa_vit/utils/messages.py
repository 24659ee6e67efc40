"""Parts of messages."""

from __future__ import annotations

from collections.abc import Iterable


def first_of(values: Iterable[object], count: int = 5) -> str:
    """Return the first values as a list in text; ``...`` marks that there are more."""
    values = [*values]
    return ', '.join(map(str, values[:count])) + (', ...' if len(values) > count else '')


def first_lines(error: BaseException, count: int = 6) -> str:
    """Return the type of an error and the first lines of its message, each cut at 240 characters."""
    lines = [line[:240] for line in str(error).splitlines()[:count]]
    return '\n'.join(
        [f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__, *lines[1:]]
    )
