"""Name the process that ended a distributed training."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

from mmengine.dist import all_gather_object, get_rank, get_world_size

Peer = tuple[int, str, int]
"""Rank, host and process id."""

_PATIENCE = 3.0  # seconds, until the launcher has collected a process that ended


class LostProcessError(ConnectionError):
    """Another process of the training has ended."""


def list_peers() -> list[Peer]:
    """All processes of the training; they call this together."""
    own = (get_rank(), socket.gethostname(), os.getpid())
    return [own] if get_world_size() == 1 else all_gather_object(own)


def raise_if_lost(peers: list[Peer], error: BaseException) -> None:
    """Raise a `LostProcessError` if the error comes from the end of another process of this host."""
    here = socket.gethostname()
    others = [peer for peer in peers if peer[1] == here and peer[2] != os.getpid()]
    if not others:
        return
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ValueError):  # outside the main thread
        # the launcher ends this process, too, which first has to give the reason
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        lost = [f'rank {rank} (process {pid})' for rank, _, pid in others if not _is_alive(pid)]
        if lost:
            raise LostProcessError(
                f'{", ".join(lost)} of this training ended on {here}, so rank {get_rank()} ends. '
                'If it has printed no error, it was killed, often because memory ran out. Continue with '
                '--resume; docs/reliability.md has automatic restarts by torchrun.'
            ) from error
        time.sleep(0.1)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, before)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
