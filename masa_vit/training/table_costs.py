"""The costs of a table's rows: step time and peak memory, as ratios to the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.device import get_device

from masa_vit.benchmark.pairs import Plan, measure_setting
from masa_vit.benchmark.results import Report
from masa_vit.benchmark.subjects import TIMM, Spec
from masa_vit.training.run_table import Row, RunTable
from masa_vit.utils.staging import write_atomically

COSTS = 'costs.json'
_QUANTITIES = {'step_time': 'training step', 'peak_memory': '- after imports, training'}


def measure_costs(table: RunTable, folder: Path, pairs: int = 9) -> dict[str, dict[str, Any]]:
    """Measure rows that `folder/costs.json` does not have yet, and add them to it.

    A training step (float32, AdamW, the batch size of the config) of each row alternates with one of
    the reference. The peak memory is that of three steps in a separate process, without the memory
    that imports take. Nothing else should run meanwhile.

    Args:
        table: The rows; the reference itself is not measured.
        folder: Of the results.
        pairs: Number of timed pairs of steps.

    Returns:
        Row -> ``step_time`` (median ratio to the reference), ``step_time_interval`` (95 %),
        ``peak_memory`` (ratio).
    """
    path = folder / COSTS
    known = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    reference = next(row for row in table.rows if row.name == table.reference)
    costs: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        if row is reference:
            continue
        models = json.loads(json.dumps([_key(row), _key(reference)], default=str))
        costs[row.name] = known.get(row.name, {})
        if costs[row.name].get('models') != models:
            costs[row.name] = {**_measure(row, reference, pairs), 'models': models}
            write_atomically(path, json.dumps({**known, **costs}, indent=1) + '\n')
    return costs


def _measure(row: Row, reference: Row, pairs: int) -> dict[str, Any]:
    report = Report({'device': get_device()})
    plan = Plan(TIMM, ('train', 'memory'), pairs=pairs, warm_up=3)
    measure_setting(plan, (_spec(row), _spec(reference)), report)
    found = {measurement.what: measurement for measurement in report.measurements}
    ratios: dict[str, Any] = {name: found[what].ratio for name, what in _QUANTITIES.items()}
    return {**ratios, 'step_time_interval': found['training step'].interval}


def _key(row: Row) -> list[Any]:
    spec = _spec(row)
    return [spec.name, dict(spec.model_args), spec.batch_size]


def _spec(row: Row) -> Spec:
    model = row.config.model
    args = {**(model.get('model_args') or {}), 'num_classes': model.num_classes}
    return Spec(
        model.model_name,
        model_args=args,
        batch_size=row.config.train_dataloader.get('batch_size', 1),
        device=get_device(),
        checkpointing=bool(model.get('grad_checkpointing')),
    )
