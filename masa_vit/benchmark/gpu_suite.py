"""ViT-S, ViT-B and ViT-L against their dense baselines on a GPU: `masa-vit benchmark --suite gpu`."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from masa_vit.benchmark import steps
from masa_vit.benchmark.measurement import Measurement
from masa_vit.benchmark.results import Report, describe_setting, print_table
from masa_vit.benchmark.specs import add_arguments, check_compile
from masa_vit.benchmark.subjects import Spec, Subject, timm_subject
from masa_vit.benchmark.timing import Call, time_pairs
from masa_vit.export import fold
from masa_vit.models import dense_architecture
from masa_vit.utils.staging import check_file

MODELS = ('vit_base_masa_s4', 'vit_small_masa_s4', 'vit_large_masa_s8')
BATCH_SIZES = (64, 256)
DTYPE = 'bf16'
SECONDS = 420.0
"""Time of the suite. The last case may exceed it, and the whole must take less than 8 minutes."""
PAIR_SECONDS = 6.0
"""Time for the pairs of one measurement."""


@dataclass(frozen=True)
class Case:
    """One model at one batch size; `what` is a key of `MEASURES`."""

    what: str
    spec: Spec
    compiled: bool

    @property
    def setting(self) -> dict[str, Any]:
        """The setting of the measurements."""
        name, batch_size = self.spec.name, self.spec.batch_size
        return dict(name=name, batch_size=batch_size, dtype=DTYPE, compile=self.compiled)

    def __str__(self) -> str:
        return f'{self.what} of {self.spec.name}, {describe_setting(self.setting)}'


def run(args: argparse.Namespace) -> int:
    """Measure every case, print a table for each model, and write the JSON.

    Raises:
        ValueError: Without a GPU, and for options that the suite does not take.
        OSError: If the file cannot be written.
    """
    if not torch.cuda.is_available():
        raise ValueError('--suite gpu: no GPU, torch.cuda.is_available() is False')
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    free = ('model', 'suite', 'device', 'json')
    defaults = vars(parser.parse_args([]))
    if wrong := [k for k in defaults if k not in free and vars(args)[k] != defaults[k]]:
        raise ValueError(f'--suite gpu takes MODEL, --device and --out only, got {wrong}')
    if torch.device(args.device).type != 'cuda':
        raise ValueError(f'--suite gpu measures on CUDA, got --device {args.device}')
    if args.model and not dense_architecture(args.model):
        raise ValueError(f'--suite gpu measures models such as {MODELS[0]}, got {args.model!r}')
    if args.json:
        check_file(args.json)
    record = {'suite': args.suite, 'device': args.device, 'dtype': DTYPE, 'seconds': SECONDS}
    report = Report(record, args.json)
    run_cases(make_cases([args.model] if args.model else MODELS, args.device), report)
    print_results(report)
    if args.json:
        print(f'json: {args.json}')
    return 0


def make_cases(models: Sequence[str], device: str) -> list[Case]:
    """List the cases: eager ones first, since compilation takes most of the time."""
    return [
        Case(what, Spec(name, batch_size=batch_size, device=device), compiled)
        for compiled in (False, True)
        for what in MEASURES
        for batch_size in BATCH_SIZES
        for name in models
    ]


def run_cases(
    cases: Sequence[Case],
    report: Report,
    seconds: float = SECONDS,
    pair_seconds: float = PAIR_SECONDS,
) -> None:
    """Measure the cases that fit into time and memory; note the others in `report`."""
    start = time.monotonic()
    if any(case.compiled for case in cases):
        try:
            check_compile(cases[0].spec.device)
        except ValueError as error:
            report.note(f'no compiled cases: {error}')
            cases = [case for case in cases if not case.compiled]
    taken: dict[tuple[bool, str], dict[str, float]] = {}  # kind of case -> model -> seconds
    for case in cases:
        of_kind = taken.setdefault((case.compiled, case.what), {})
        # twice the longest for another model: the largest has twice the layers of the others
        expected = of_kind.get(case.spec.name, 2 * max(of_kind.values(), default=0.0))
        began = time.monotonic()
        if began - start + expected > seconds:
            report.note(
                f'{case}: not measured, about {expected:.0f} s do not fit into {seconds:g} s'
            )
            continue
        try:
            for row in MEASURES[case.what](case, pair_seconds):
                report.add(replace(row, setting=case.setting))
        except torch.OutOfMemoryError as error:
            report.note(f'{case}: out of memory. {str(error).splitlines()[0]}')
        torch.compiler.reset()  # drops references to the models, as the next line does for cycles
        gc.collect()
        torch.cuda.empty_cache()
        of_kind[case.spec.name] = time.monotonic() - began
        print(f'{time.monotonic() - start:4.0f} s  {case}', flush=True)


def _training(case: Case, pair_seconds: float) -> Iterator[Measurement]:
    device = torch.device(case.spec.device)
    calls: list[Call] = []
    peaks: list[float] = []
    # allocates the workspace of cuBLAS, which would count for the first model
    torch.nn.Linear(64, 64, device=device)(torch.ones(64, 64, device=device)).sum().backward()
    for dense in (False, True):
        before = torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0
        calls.append(steps.training_step(_build(case, dense), device, DTYPE, case.compiled))
        calls[-1]()  # compiles, and creates the state of the optimizer
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            calls[-1]()
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
    if peaks:
        yield Measurement('peak memory', 'bytes', peaks[:1], peaks[1:])
    yield from _time(calls[0], calls[1], pair_seconds)


def _evaluation(case: Case, pair_seconds: float) -> Iterator[Measurement]:
    how = (torch.device(case.spec.device), DTYPE, case.compiled)
    subject, dense = _build(case, False), _build(case, True)
    against = steps.evaluation(dense, dense.model, *how)
    yield from _time(steps.evaluation(subject, subject.model, *how), against, pair_seconds)
    if not case.compiled:  # compiled, the folded model has the graph of the dense one
        folded = steps.evaluation(subject, fold(subject.model), *how)
        for row in _time(folded, against, pair_seconds):
            yield replace(row, what='evaluation after fold')


MEASURES = {'training': _training, 'evaluation': _evaluation}


def _build(case: Case, dense: bool) -> Subject:
    torch.manual_seed(0)
    with torch.device(case.spec.device):  # initialization on the CPU takes seconds
        return timm_subject(replace(case.spec, dense=dense))


def _time(model: Call, against: Call, seconds: float) -> list[Measurement]:
    """Time 3 to 21 pairs, as many as fit into `seconds`."""
    model()  # compiles
    against()
    start = time.perf_counter()
    model()
    against()
    number = int(seconds / (time.perf_counter() - start))
    return time_pairs(model, against, max(3, min(number, 21)), warm_up=0)


def print_results(report: Report) -> None:
    """Print the eager and the compiled cases of each model, without the parts of the step."""
    tables: dict[tuple[str, bool], list[Measurement]] = {}
    for row in report.measurements:
        if row.what not in ('forward', 'backward', 'optimizer'):
            what = f'{row.what}, {row.setting["batch_size"]}'
            key = (row.setting['name'], row.setting['compile'])
            tables.setdefault(key, []).append(replace(row, what=what))
    for (name, compiled), rows in sorted(tables.items()):
        title = f'{name} over {dense_architecture(name)}, {report.machine["device"]}'
        how = 'compiled' if compiled else 'eager'
        print_table(f'{title}\nby batch size, {DTYPE}, {how}', rows)
