"""Time two calls in turn, so that what slows the machine down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from masa_vit.benchmark.measurement import Measurement

Call = Callable[[], dict[str, float]]
"""Runs once; returns the seconds of each of its parts by name."""


class Stopwatch:
    """Seconds between laps; on CUDA by events, which let the host run ahead as it does in use."""

    def __init__(self, device: torch.device) -> None:
        """Wait for the device to finish what it does, and start."""
        self.device = device
        self.laps: list[Any] = []
        synchronize(device)
        self.lap()

    def lap(self) -> None:
        """End a lap, and start the next."""
        if self.device.type == 'cuda':
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.laps.append(event)
        else:
            synchronize(self.device)
            self.laps.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of each lap."""
        synchronize(self.device)
        pairs = zip(self.laps, self.laps[1:], strict=False)
        if self.device.type == 'cuda':
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type not in ('cpu', 'meta'):
        torch.accelerator.synchronize(device)


def timed(what: str, function: Callable[[], Any], device: torch.device) -> Call:
    """A call that takes the time of `function` under the name `what`."""

    def call() -> dict[str, float]:
        watch = Stopwatch(device)
        function()
        watch.lap()
        return {what: watch.seconds()[0]}

    return call


def time_pairs(model: Call, against: Call, pairs: int, warm_up: int = 1) -> list[Measurement]:
    """Time two calls in pairs, A B B A A B ..., after `warm_up` calls of each.

    Returns:
        A measurement for each part of the calls; run i of one makes a pair with run i of the other.
    """
    calls = (model, against)
    for call in calls * warm_up:
        call()
    runs: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for index in range(pairs):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            runs[which].append(calls[which]())
    ours, others = runs
    return [
        Measurement(what, 's', [run[what] for run in ours], [run[what] for run in others])
        for what in ours[0]
    ]


def time_alone(call: Call, runs: int, warm_up: int = 1) -> list[Measurement]:
    """Time a call that has no counterpart, `runs` times after `warm_up` calls."""
    for _ in range(warm_up):
        call()
    results = [call() for _ in range(runs)]
    return [Measurement(what, 's', [run[what] for run in results]) for what in results[0]]
