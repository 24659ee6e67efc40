"""Evaluate a checkpoint with the test (or else validation) set of a config."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process

from masa_vit.training.checkpoint_files import METRICS, read_checkpoint
from masa_vit.training.configs import load_config, readable_errors
from masa_vit.training.launch import choose_work_dir, process_group
from masa_vit.training.runner import Runner
from masa_vit.utils.staging import check_file, write_atomically

_PARTS = ('dataloader', 'cfg', 'evaluator')


def test(
    config: str | Path | Config,
    checkpoint: str | Path,
    work_dir: str | Path | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    amp: bool = False,
    launcher: str = 'none',
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint; of a run with EMA, its averaged weights.

    The metrics are written to `<work_dir>/test/metrics.json`, together with the names of config and
    checkpoint; NaN and infinity are written as null.

    Args:
        config: path, `masa_vit::cls/x.py`, or a loaded config. Without a `test_dataloader` its
            validation set is used.
        checkpoint: a file that training wrote; it must fit the config's model exactly.
        work_dir: log and metrics go to its folder `test`; by default as in training.
        out: a second JSON file for the metrics.
        force: overwrite `out`.
        amp: evaluate in mixed precision.
        launcher: as in training.
        cfg_options: overrides by dotted key.

    Returns:
        Metric name -> value.

    Raises:
        ValueError: a mistyped key, a truncated checkpoint or one that does not fit, no test data,
            an `out` that is not a JSON file.
        FileNotFoundError: config, checkpoint or data are missing.
        FileExistsError: `out` exists.
    """
    if out is not None:
        _check_out(Path(out), force)
    cfg = load_config(config, cfg_options)
    if cfg.get('test_dataloader') is None:
        for part in _PARTS:
            if cfg.get(f'val_{part}') is None:
                raise ValueError(
                    f'config {cfg.filename or ""}: neither test_dataloader nor val_{part}; '
                    'testing needs a loader, a cfg and an evaluator for one of the two.'
                )
            if cfg.get(f'test_{part}') is not None:
                raise ValueError(
                    f'config {cfg.filename or ""}: test_{part} without test_dataloader, so that the '
                    f'validation data are used; write val_{part}.'
                )
            cfg[f'test_{part}'] = cfg[f'val_{part}']
        cfg.test_cfg.pop('type', None)
    read_checkpoint(checkpoint)
    # the parts for training are not built
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key, None)
    for part in _PARTS:
        cfg.pop(f'val_{part}', None)
    if amp:
        cfg.test_cfg.fp16 = True  # mmengine's name; on a CPU it is bfloat16
    cfg.work_dir = str(choose_work_dir(cfg, work_dir) / 'test')
    cfg.resume, cfg.load_from = False, str(checkpoint)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='FoldHook')]

    with process_group(cfg, launcher), readable_errors(cfg):
        runner = Runner.from_cfg(cfg)
        runner.strict = True
        metrics = runner.test()
        if is_main_process():
            record = {
                'config': cfg.filename,
                'checkpoint': str(checkpoint),
                'metrics': {name: _to_json(value) for name, value in metrics.items()},
            }
            files = [Path(cfg.work_dir) / METRICS, *([Path(out)] if out is not None else [])]
            for file in files:
                write_atomically(file, json.dumps(record, indent=2, ensure_ascii=False) + '\n')
            runner.logger.info(f'Metrics: {", ".join(map(str, files))}')
        return metrics


def _check_out(out: Path, force: bool) -> None:
    if out.suffix.lower() != '.json':
        raise ValueError(
            f'--out {out}: expected a .json file, for the metrics. The predictions of a detector are '
            'written with --cfg-options test_evaluator.outfile_prefix=PREFIX.'
        )
    check_file(out, force)


def _to_json(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None  # NaN: a class without objects
