"""Measure a pair of models: once, and in each setting of batch size and precision."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from masa_vit.benchmark import steps
from masa_vit.benchmark.memory import peak_memory
from masa_vit.benchmark.results import Report
from masa_vit.benchmark.sizes import UNITS, count_flops, count_sizes
from masa_vit.benchmark.subjects import Kind, Spec, Subject
from masa_vit.benchmark.timing import Measurement, time_alone, time_pairs, timed
from masa_vit.export import fold

MEASURES = {
    'train': 'training step with AdamW: the whole, forward, backward, optimizer',
    'eval': 'evaluation, weights composed on the fly',
    'fold-eval': 'evaluation after fold',
    'load': 'reading a safetensors file into a model of dense speed',
    'fold': 'masa_vit.fold (seconds, no ratio)',
    'compress': 'compression of the dense baseline (seconds, no ratio)',
    'memory': 'peak memory of training, in a separate process',
    'eval-memory': 'peak memory of evaluation, in a separate process',
    'sizes': 'parameters, optimizer state, gradients all-reduced, checkpoint, FLOPs',
}
DEFAULT_MEASURES = ('train', 'eval', 'fold-eval', 'sizes')
SHARED_ONLY = ('fold-eval', 'fold', 'compress')
"""Measurements of models with shared weights."""


@dataclass(frozen=True)
class Plan:
    """The measurements of a pair of models."""

    kind: Kind
    measures: Collection[str]
    """Keys of `MEASURES`."""
    dtype: str = 'fp32'
    compiled: bool = False
    pairs: int = 7
    warm_up: int = 1


def build_pair(kind: Kind, specs: tuple[Spec, Spec]) -> tuple[Subject, Subject]:
    """Build both models.

    Raises:
        ValueError: If they take images of different sizes.
    """
    torch.manual_seed(0)
    model, against = (kind.build(spec) for spec in specs)
    if model.img_size != against.img_size:
        raise ValueError(
            f'{model.name!r} takes images of {model.img_size} pixels, {against.name!r} of '
            f'{against.img_size}: choose one size, --img-size'
        )
    return model, against


def measure_once(
    plan: Plan, specs: tuple[Spec, Spec], pair: tuple[Subject, Subject]
) -> Iterator[Measurement]:
    """Measure the quantities that depend on no setting."""
    subject, against = pair
    device = torch.device(specs[0].device)
    if 'sizes' in plan.measures:
        sizes, others = count_sizes(subject), count_sizes(against)
        for what, unit in UNITS.items():
            yield Measurement(what, unit, [sizes[what]], [others[what]])
    if 'load' in plan.measures:
        with steps.loading(subject, device) as ours, steps.loading(against, device) as other:
            yield from time_pairs(ours, other, plan.pairs, plan.warm_up)
    if 'fold' in plan.measures:
        folding = timed('fold', partial(fold, subject.model))
        yield from time_alone(folding, plan.pairs, plan.warm_up)
    if 'compress' in plan.measures:
        dense = plan.kind.build(replace(specs[0], dense=True)).model
        call = steps.compressing(dense, subject.model)
        yield from time_alone(call, plan.pairs, plan.warm_up)


def measure_setting(plan: Plan, specs: tuple[Spec, Spec], report: Report) -> None:
    """Measure the quantities that depend on batch size and precision, and add them to `report`."""
    setting = {
        'batch_size': specs[0].batch_size,
        'dtype': plan.dtype,
        'compile': plan.compiled,
        'checkpointing': specs[0].checkpointing,
    }
    for rows in (_memory(plan, specs), _flops(plan, specs, report), _times(plan, specs)):
        for row in rows:
            report.add(replace(row, setting={**row.setting, **setting}))


def _memory(plan: Plan, specs: tuple[Spec, Spec]) -> Iterator[Measurement]:
    for name, what in (('memory', 'training'), ('eval-memory', 'evaluation')):
        if name in plan.measures:
            ours, others = (
                peak_memory(plan.kind.build, s, plan.dtype, plan.compiled, name == 'memory')
                for s in specs
            )
            yield Measurement(f'peak memory of {what}', 'bytes', [ours[0]], [others[0]])
            yield Measurement(f'- after imports, {what}', 'bytes', [ours[1]], [others[1]])


def _flops(plan: Plan, specs: tuple[Spec, Spec], report: Report) -> Iterator[Measurement]:
    if 'sizes' in plan.measures and 'flops' in plan.kind.missing:
        report.note(f'no FLOPs: {plan.kind.missing["flops"]}')
    elif 'sizes' in plan.measures:
        ours, others = (count_flops(plan.kind.build(replace(s, device='meta'))) for s in specs)
        for what in ours:
            yield Measurement(what, 'FLOPs', [ours[what]], [others[what]])


def _times(plan: Plan, specs: tuple[Spec, Spec]) -> Iterator[Measurement]:
    if not {'train', 'eval', 'fold-eval'} & {*plan.measures}:
        return
    torch.compiler.reset()  # compiled code for other batch sizes would make sizes dynamic
    subject, against = build_pair(plan.kind, specs)
    how = (torch.device(specs[0].device), plan.dtype, plan.compiled)
    if 'train' in plan.measures:
        calls = (steps.training_step(subject, *how), steps.training_step(against, *how))
        yield from time_pairs(*calls, plan.pairs, plan.warm_up)
        del calls  # with the states of the optimizers
    for name, change, what in (
        ('eval', lambda model: model, 'evaluation'),
        ('fold-eval', fold, 'evaluation after fold'),
    ):
        if name in plan.measures:
            ours = steps.evaluation(subject, change(subject.model), *how)
            other = steps.evaluation(against, against.model, *how)
            for row in time_pairs(ours, other, plan.pairs, plan.warm_up):
                yield replace(row, what=what)
