"""ViT-S, ViT-B and ViT-L against their dense baselines on a GPU: `masa-vit benchmark --suite gpu`."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from masa_vit.benchmark.pairs import Plan, measure_setting
from masa_vit.benchmark.results import Report, print_table
from masa_vit.benchmark.subjects import TIMM, Spec
from masa_vit.models import dense_architecture

MODELS = ('vit_base_masa_s4', 'vit_small_masa_s4', 'vit_large_masa_s8')
BATCH_SIZES = (64, 256)
SECONDS = 420.0
"""Time of the suite; the last case may exceed it."""
MEASURES = ('train', 'memory', 'eval', 'fold-eval')
PAIRS = 9


@dataclass(frozen=True)
class Case:
    """One measurement of one model at one batch size, in bf16."""

    measure: str
    spec: Spec
    compiled: bool

    def __str__(self) -> str:
        compiled = ', compiled' if self.compiled else ''
        return f'{self.measure} of {self.spec.name}, batch {self.spec.batch_size}, bf16{compiled}'


def make_cases(models: Sequence[str], device: str) -> list[Case]:
    """List the cases: eager ones first, since compilation takes most of the time."""
    return [
        Case(measure, Spec(name, batch_size=batch_size, device=device), compiled)
        for compiled in (False, True)
        for measure in MEASURES
        # compiled, the folded model has the graph of the dense one; memory is that of the eager model
        if not compiled or measure in ('train', 'eval')
        for batch_size in BATCH_SIZES
        for name in models
    ]


def run_cases(
    cases: Sequence[Case], report: Report, seconds: float = SECONDS, pairs: int = PAIRS
) -> None:
    """Measure the cases that fit into time and memory; note the others in `report`."""
    start = time.monotonic()
    taken: dict[tuple[bool, str], dict[str, float]] = {}  # kind of case -> model -> seconds
    for case in cases:
        of_kind = taken.setdefault((case.compiled, case.measure), {})
        # twice the longest for another model: the largest has twice the layers of the others
        expected = of_kind.get(case.spec.name, 2 * max(of_kind.values(), default=0.0))
        began = time.monotonic()
        if began - start + expected > seconds:
            report.note(f'{case}: not measured, {expected:.0f} s do not fit into {seconds:g} s')
            continue
        plan = Plan(TIMM, [case.measure], 'bf16', case.compiled, pairs, warm_up=2)
        before = len(report.measurements)
        try:
            measure_setting(plan, (case.spec, replace(case.spec, dense=True)), report)
        except torch.OutOfMemoryError as error:
            report.note(f'{case}: out of memory. {str(error).splitlines()[0]}')
        rows = report.measurements[before:]
        report.measurements[before:] = [
            replace(row, setting={'name': case.spec.name, **row.setting}) for row in rows
        ]
        report.add()
        torch.compiler.reset()  # drops references to the models, as the next lines do
        gc.collect()
        torch.cuda.empty_cache()
        of_kind[case.spec.name] = time.monotonic() - began
        print(f'{time.monotonic() - start:4.0f} s  {case}', flush=True)


def print_results(report: Report) -> None:
    """Print a table for the eager and the compiled cases of each model."""
    keys = {(row.setting['name'], row.setting['compile']): None for row in report.measurements}
    for name, compiled in sorted(keys):
        rows = [
            replace(row, what=f'{row.what}, {row.setting["batch_size"]}')
            for row in report.measurements
            if (row.setting['name'], row.setting['compile']) == (name, compiled)
        ]
        how = 'compiled' if compiled else 'eager'
        title = f'{name} over {dense_architecture(name)}, {report.machine["device"]}'
        print_table(f'{title}\nby batch size, bf16, {how}', rows)
