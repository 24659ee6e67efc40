"""Stop a training on request: SIGTERM of a scheduler, Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size

EXIT_CODE = 75
"""Of a training that was stopped on request: EX_TEMPFAIL of sysexits.h, "try again"."""


class TrainingStoppedError(Exception):
    """A training was stopped by a signal; the message says where, and where it was saved."""


def exit_code_when_stopped(run: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
    """Decorate a command that trains: print the message of a `TrainingStoppedError`, return 75."""

    @functools.wraps(run)
    def command(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except TrainingStoppedError as stop:
            print(f'\nmasa-vit: {stop}', file=sys.stderr)
            return EXIT_CODE

    return command


class StopRequest:
    """Record the first SIGTERM or SIGINT as `signal`.

    The handlers are then restored, so that a second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._group: Any = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT; nothing is done outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def handle(number: int, frame: Any) -> None:
            self.signal = signal.Signals(number)
            restore()

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            restore()

    def of_any_rank(self) -> bool:
        """Whether some rank was asked to stop; all ranks call this together."""
        if get_world_size() == 1:
            return self.signal is not None
        if self._group is None:
            # on the CPU: the GPU need not be waited for
            self._group = dist.new_group(backend='gloo')
        flag = torch.tensor(self.signal or 0)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        if flag and self.signal is None:
            self.signal = signal.Signals(int(flag))
        return bool(flag)

    def error(self, place: str, saved: Path | None) -> TrainingStoppedError:
        """The error that ends the training."""
        name = self.signal.name if self.signal else 'a signal'
        end = f'saved in {saved}. Continue with --resume.' if saved else 'its state was not saved.'
        return TrainingStoppedError(f'stopped by {name} {place}; {end}')
