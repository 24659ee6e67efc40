"""Evaluate a checkpoint with the test (or else validation) set of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from masa_vit.engine.config import load_config
from masa_vit.engine.files import read_checkpoint
from masa_vit.engine.runner import Runner
from masa_vit.engine.train import choose_work_dir, process_group, readable_errors

_PARTS = ('dataloader', 'cfg', 'evaluator')


def test(
    config: str | Path | Config,
    checkpoint: str | Path,
    work_dir: str | Path | None = None,
    *,
    amp: bool = False,
    launcher: str = 'none',
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint; of a run with EMA, its averaged weights.

    Args:
        config: path, `masa_vit::cls/x.py`, or a loaded config. Without a `test_dataloader` its
            validation set is used.
        checkpoint: a file that training wrote; it must fit the config's model exactly.
        work_dir: where the log goes, in a folder of its own; by default as in training.
        amp: evaluate in mixed precision.
        launcher: as in training.
        cfg_options: overrides by dotted key.

    Returns:
        Metric name -> value.

    Raises:
        ValueError: a mistyped key, a truncated checkpoint or one that does not fit, no test data.
        FileNotFoundError: config, checkpoint or data are missing.
    """
    cfg = load_config(config, cfg_options)
    if cfg.get('test_dataloader') is None:
        for part in _PARTS:
            if cfg.get(f'val_{part}') is None:
                raise ValueError(
                    f'config {cfg.filename or ""}: neither test_dataloader nor val_{part}; '
                    'testing needs a loader, a cfg and an evaluator for one of the two.'
                )
            cfg[f'test_{part}'] = cfg[f'val_{part}']
        cfg.test_cfg.pop('type', None)
    read_checkpoint(checkpoint)
    # what belongs to training is not built
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key, None)
    for part in _PARTS:
        cfg.pop(f'val_{part}', None)
    if amp:
        cfg.test_cfg.fp16 = True  # mmengine's name; on a CPU it is bfloat16
    cfg.work_dir = str(choose_work_dir(cfg, work_dir) / 'test')
    cfg.resume, cfg.load_from = False, str(checkpoint)

    with process_group(cfg, launcher), readable_errors(cfg):
        runner = Runner.from_cfg(cfg)
        runner.strict = True
        return runner.test()
