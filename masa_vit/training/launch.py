"""Train a config, of any task."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, get_world_size, is_distributed

from masa_vit.models.state_dict import rename_old_keys
from masa_vit.training.checkpoint_files import SUMMARY, read_checkpoint
from masa_vit.training.configs import load_config, read_literals, readable_errors
from masa_vit.training.hooks.run_summary import SummaryHook
from masa_vit.training.runner import Runner
from masa_vit.training.work_dir import check_work_dir_free, find_last_checkpoint, locked

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def train(
    config: str | Path | Config,
    work_dir: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    amp: bool = False,
    seed: int | None = None,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a config to its end; everything that can be refused is refused before the first step.

    Args:
        config: path, `masa_vit::cls/x.py`, or a loaded config.
        work_dir: where the run's files go; by default the config's `work_dir`, or
            `work_dirs/<name of the config>`.
        resume: 'auto' continues from the work dir's last checkpoint and starts where there is none,
            a path continues from that file. The run continues with its seed and its
            length.
        amp: mixed precision: bfloat16, or float16 with a loss scale on a GPU without it.
        seed: of all random numbers; by default the config's `randomness.seed`, or a random one.
        auto_scale_lr: scale the learning rate by batch size over `auto_scale_lr.base_batch_size`.
        launcher: 'pytorch' under torchrun (on the CPU, too), 'slurm', 'mpi', or 'none'.
        cfg_options: overrides by dotted key.

    Returns:
        The content of the work dir's `summary.json` (see `SummaryHook`), and its path as `summary`.

    Raises:
        ValueError: a mistyped key or argument, a work dir that holds another run or is in use, a
            checkpoint that is truncated or does not fit, another seed or length than the resumed run's;
            a loss or gradient that is not finite (see `FiniteHook`).
        FileNotFoundError: config, checkpoint or data are missing.
        TrainingStoppedError: SIGTERM or SIGINT ended the training after a step, its state saved.
    """
    cfg = load_config(config, cfg_options)
    for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ValueError(f'config {cfg.filename or ""}: no {key!r}, which training needs.')
    cfg.work_dir = str(choose_work_dir(cfg, work_dir))
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    if amp:
        _set_amp(cfg)
    if auto_scale_lr:
        _set_auto_scale_lr(cfg)
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'  # as in mmengine
    _set_start(cfg, resume, seed)
    # of several processes the first has the lock
    lock = locked(cfg.work_dir) if is_rank_0(launcher) else contextlib.nullcontext()
    with lock, process_group(cfg, launcher), readable_errors(cfg):
        _set_start(cfg, resume, seed)  # again: a training that held the lock may have just ended
        return _run(cfg, resume is not None)


def _run(cfg: Config, resume: bool) -> dict[str, Any]:
    runner = Runner.from_cfg(cfg)
    if not any(isinstance(hook, SummaryHook) for hook in runner.hooks):
        runner.register_hook(SummaryHook())
    if resume and not cfg.resume:
        runner.logger.info(f'Nothing to resume in {runner.work_dir}: the training starts')
    runner.logger.info(
        f'Training {runner.model_name} of {cfg.filename or "a config in memory"}, '
        f'seed {runner.seed}, {_device_name()}\n'
        f'  outputs: {runner.work_dir}\n  log:     {runner.logger.log_file}'
    )
    runner.train()
    barrier()  # the other ranks read a file of rank 0
    path = Path(runner.work_dir) / SUMMARY
    return {**json.loads(path.read_text(encoding='utf-8')), 'summary': str(path)}


def choose_work_dir(cfg: Config, work_dir: str | Path | None = None) -> Path:
    """The given folder, the config's, or `work_dirs/<name of the config>`."""
    if work_dir is None:
        work_dir = cfg.get('work_dir') or Path('work_dirs') / Path(cfg.filename or 'unnamed').stem
    return Path(work_dir).resolve()


def _set_start(cfg: Config, resume: str | Path | None, seed: int | None) -> None:
    """Set the config to start a run in a free work dir, or to resume one."""
    path = find_last_checkpoint(cfg.work_dir) if str(resume) == 'auto' else resume
    cfg.resume = path is not None
    if path is not None:
        _set_resume(cfg, Path(path), seed)
    else:
        check_work_dir_free(cfg.work_dir)
        if cfg.get('load_from') and '://' not in cfg.load_from:
            read_checkpoint(cfg.load_from)


def _set_resume(cfg: Config, path: Path, seed: int | None) -> None:
    """Point the config at the checkpoint, and give it the seed of its run.

    The seed must be known before the loaders are built: mmengine takes it up only afterwards,
    so that a run without a fixed seed would see its data in another order.
    """
    if path.resolve().parent != Path(cfg.work_dir).resolve():
        check_work_dir_free(cfg.work_dir)
    checkpoint = read_checkpoint(path)
    meta = checkpoint.get('meta', {})
    if 'epoch' not in meta or 'iter' not in meta:
        raise ValueError(f'checkpoint {str(path)!r} holds weights only; nothing to resume.')
    for key in ('epoch', 'iter'):
        end = cfg.train_cfg.get(f'max_{key}s') or float('inf')
        if type(meta[key]) is not int or not 0 <= meta[key] <= end:
            raise ValueError(
                f'checkpoint {str(path)!r} is of {key} {meta[key]!r}, expected a number from 0 to {end} '
                f'(train_cfg.max_{key}s)'
            )
    if rename_old_keys(dict(checkpoint['state_dict'])):
        raise ValueError(
            f'checkpoint {str(path)!r} was written by version 0.1, which had its parameters in another '
            "order: the optimizer's state does not fit. Start a new run from its weights "
            '(init_from of a classifier, load_from), or resume with version 0.1.'
        )
    run_seed = meta.get('seed')
    if seed is not None and run_seed is not None and seed != run_seed:
        raise ValueError(
            f'--seed {seed}, but the run in {str(path)!r} has seed {run_seed}: a resumed run keeps '
            'its seed. Leave --seed out, or start a new run in another --work-dir.'
        )
    if run_seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=run_seed)
    if 'cfg' in meta:
        _check_same_length(cfg, read_literals(meta['cfg']), path)
    cfg.load_from = str(path)


def _check_same_length(cfg: Config, old: dict[str, Any], path: Path) -> None:
    """Refuse to resume with another length: the end of the schedules is in the checkpoint."""
    for key in ('train_cfg.max_epochs', 'train_cfg.max_iters', 'train_dataloader.batch_size'):
        section, name = key.split('.')
        new, was = (config.get(section, {}).get(name) for config in (cfg, old))
        if section in old and new != was:
            raise ValueError(
                f'{key} is {new}, but {was} in the run of {str(path)!r}: its learning rates are '
                f'planned for that. Resume with {key}={was}, or start a new run from its weights '
                '(init_from of a classifier, load_from).'
            )


def _set_amp(cfg: Config) -> None:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind in ('AmpOptimWrapper', 'BFloat16OptimWrapper'):
        return
    if kind != 'OptimWrapper':
        raise ValueError(
            f"--amp: optim_wrapper.type is {kind!r}; expected 'OptimWrapper'. Set the precision in "
            'the config instead.'
        )
    if get_device() not in ('cpu', 'cuda'):
        raise ValueError(
            f'--amp works on CPU and CUDA only, this machine trains on {get_device()!r}'
        )
    if get_device() == 'cpu' and not _multiplies_bfloat16():
        warnings.warn(
            '--amp: this CPU has no instructions for bfloat16 products (AVX512-BF16, AMX); mixed '
            'precision is slower than float32 here',
            stacklevel=4,
        )
    bfloat16 = get_device() == 'cpu' or torch.cuda.is_bf16_supported(including_emulation=False)
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper' if bfloat16 else 'AmpOptimWrapper'


def _multiplies_bfloat16() -> bool:
    """Whether an x86 CPU multiplies bfloat16 natively; True for others, which are not asked."""
    is_x86 = platform.machine().lower() in ('x86_64', 'amd64')
    return not is_x86 or torch.cpu._is_avx512_bf16_supported()


def _set_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            '--auto-scale-lr: the config does not say which batch size its learning rate is for; '
            'add auto_scale_lr = dict(base_batch_size=...).'
        )
    cfg.auto_scale_lr.enable = True


@contextlib.contextmanager
def process_group(cfg: Config, launcher: str) -> Iterator[None]:
    """Set the launcher; without a GPU start gloo, since mmengine expects one.

    Raises:
        ValueError: unknown launcher, or 'pytorch' outside torchrun.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher is {launcher!r}; expected one of {", ".join(LAUNCHERS)}.')
    cfg.launcher = launcher
    had_group = is_distributed()
    if launcher == 'pytorch':
        if 'LOCAL_RANK' not in os.environ:
            raise ValueError(
                "launcher 'pytorch' works under torchrun only: "
                'torchrun --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch'
            )
        if get_device() not in ('cpu', 'cuda'):
            raise ValueError(
                f"launcher 'pytorch' works on CPU and CUDA only, this machine trains on "
                f'{get_device()!r}'
            )
        if not torch.cuda.is_available():
            cfg.model_wrapper_cfg = {  # as mmengine makes it, but for the device
                'type': 'MMDistributedDataParallel',
                'find_unused_parameters': cfg.get('find_unused_parameters', False),
                'broadcast_buffers': False,
                **(cfg.get('model_wrapper_cfg') or {}),
                'device_ids': None,
            }
            if not had_group:
                dist.init_process_group('gloo')
    try:
        yield
    finally:
        if not had_group and is_distributed():
            dist.destroy_process_group()


def _device_name() -> str:
    world = get_world_size()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else get_device().upper()
    return f'{world} x {name}' if world > 1 else name


_RANK = {'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def is_rank_0(launcher: str = 'none') -> bool:
    """Whether this is the first of the processes, also while they have no group."""
    return os.environ.get(_RANK.get(launcher, 'RANK'), '0') == '0'
