"""Show on stderr what a compression is doing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger('masa_vit.compression')
"""Progress messages of the package; shown by the command."""


@contextmanager
def shown() -> Iterator[None]:
    """Write what is logged within the context to stderr, line by line, on a terminal with a spinner."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    handler = logging.Handler()
    handler.emit = lambda record: console.print(record.getMessage())  # type: ignore[method-assign]
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # a handler of the root logger would write every line again
    try:
        with console.status('compressing'):  # nothing, where stderr is no terminal
            yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
