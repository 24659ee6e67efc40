"""mmengine's Runner with reproducible epochs, a readable console and strict checkpoints."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from mmengine.runner import Runner as _Runner
from torch import nn
from torch.utils.data import DataLoader

from masa_vit.models.loading import check_dtypes
from masa_vit.training.hooks.finite import FiniteHook
from masa_vit.training.hooks.stop import StopHook
from masa_vit.training.peers import list_peers, raise_if_lost
from masa_vit.training.seeding import SeedHook, TrainLoop, init_worker, number_batches
from masa_vit.training.stopping import StopRequest, TrainingStoppedError
from masa_vit.training.wrapped_models import unwrap
from masa_vit.utils.messages import first_lines, first_of

# Messages of mmengine at every start that go to the log file only.
_FILE_ONLY = (
    '\n' + '-' * 60 + '\nSystem environment',
    'Config:',
    'Hooks will be executed',
    'Exp name:',
    'Checkpoints will be saved',
    'Saving checkpoint at',
    'The previous best checkpoint',
    'Distributed training is not used',
    'load model from:',
    'Load checkpoint from',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    # mmdet's, before its tables and the line of the validation that says the same
    'Evaluating bbox...',
    'Evaluating segm...',
    'bbox_mAP_copypaste:',
    'segm_mAP_copypaste:',
)

_BY_EPOCH = ('EpochBasedTrainLoop', 'mmengine.EpochBasedTrainLoop', EpochBasedTrainLoop)


def _for_console(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    within_validation = message.startswith(('Epoch(val)', 'Epoch(test)')) and 'eta:' in message
    return not (within_validation or message.startswith(_FILE_ONLY))


class Runner(_Runner):
    """A Runner for any task; differences from mmengine's:

    - samples and iterations are seeded by their number (`masa_vit.training.seeding`), so a resumed run
      repeats;
    - SIGTERM and SIGINT end a training after its step, saved (`StopHook`);
    - a loss or gradient that is not finite ends it before the weights change (`FiniteHook`);
    - environment, config and hooks go to the log file only, not to the console;
    - a resumed or tested checkpoint must fit the model exactly (only `load_from` may match partly).
    """

    strict = False  # set by `test`: the checkpoint must fit

    _train_dataloader: Any
    _timestamp: str
    _timestamps: ClassVar[set[str]] = set()

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up the environment, with a different time stamp for every run of this process.

        mmengine names logger, message hub and log folder by the second: two short runs in one
        process would share them.
        """
        super().setup_env(env_cfg)
        stamp, number = self._timestamp, 1
        while self._timestamp in self._timestamps:
            number += 1
            self._timestamp = f'{stamp}_{number}'
        self._timestamps.add(self._timestamp)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """The logger, with mmengine's long listings kept off the console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_for_console)
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Build one visualizer per run; a name in the config would be shared by all of a process."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.experiment_name}
        return super().build_visualizer(visualizer)

    def register_hooks(
        self,
        default_hooks: dict[str, Any] | None = None,
        custom_hooks: list[Any] | None = None,
    ) -> None:
        """mmengine's hooks, the config's, and those that every run has, unless the config has them."""
        super().register_hooks(default_hooks, custom_hooks)
        for kind in (SeedHook, FiniteHook, StopHook):
            if not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())

    def dump_config(self) -> None:
        """Write the config into the work dir: that of a run from the start, also when resumed.

        The config of the run that started stays; a later run with it is not to resume.
        """
        if not self._resume:
            super().dump_config()
            return
        cfg = copy.deepcopy(self.cfg)
        cfg.resume, cfg.load_from = False, None
        name = Path(cfg.filename).name if cfg.filename else f'{self.timestamp}.py'
        if not (Path(self.work_dir) / name).exists():
            cfg.dump(Path(self.work_dir) / name)

    def _init_model_weights(self) -> None:
        """Initialize the weights, unless a checkpoint will replace all of them."""
        if not self._resume:
            super()._init_model_weights()

    def train(self) -> nn.Module:
        """Train until the end or a stop request; hooks with a `close` are closed, also after errors.

        Raises:
            TrainingStoppedError: SIGTERM or SIGINT has ended it.
            LostProcessError: another process of it has ended.
        """
        self.stop_request = StopRequest()
        peers = list_peers()
        try:
            with self.stop_request.listening():
                return super().train()
        except (RuntimeError, TrainingStoppedError) as error:
            raise_if_lost(peers, error)
            raise
        finally:
            for hook in self.hooks:
                if hasattr(hook, 'close'):
                    hook.close()
            for loop in (self._train_loop, self._val_loop):
                if isinstance(loop, BaseLoop):
                    # ends persistent workers now; collected later, each would take 5 seconds
                    loop.dataloader._iterator = None

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the loop, with numbered batches; by epochs a `TrainLoop`."""
        if isinstance(loop, dict) and isinstance(self._train_dataloader, dict):
            self._train_dataloader = number_batches(self._train_dataloader, self.seed, get_rank())
            if loop.get('by_epoch') or loop.get('type') in _BY_EPOCH:
                loop = {key: value for key, value in loop.items() if key != 'by_epoch'}
                loop['type'] = TrainLoop
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a loader whose workers are stopped by the main process only."""
        if seed is not None and isinstance(dataloader, dict):
            # a separate generator: starting a loader must not draw from the global one
            dataloader = {'generator': torch.Generator().manual_seed(seed), **dataloader}
            if 'worker_init_fn' not in dataloader:
                dataloader['worker_init_fn'] = dict(
                    type=init_worker,
                    num_workers=dataloader.get('num_workers', 0),
                    rank=get_rank(),
                    seed=seed,
                    disable_subprocess_warning=dataloader.pop('disable_subprocess_warning', False),
                )
        return _Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a checkpoint.

        Raises:
            ValueError: the state of the training in the checkpoint is damaged.
        """
        try:
            super().resume(filename, *args, **kwargs)
        except (KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
            raise ValueError(
                f'checkpoint {filename!r} has no training state to resume from '
                f'({type(error).__name__}: {error}). Resume from another checkpoint, or start a new run '
                'from its weights (init_from of a classifier, load_from).'
            ) from error

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: list[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint onto the CPU; strict when resuming or testing.

        Loading copies to the parameters' device in any case. On a GPU the step counters of AdamW would
        stay there and cost a synchronisation each, and MPS has no float64.

        Raises:
            ValueError: a strictly loaded checkpoint does not fit the model.
        """
        try:
            checkpoint = super().load_checkpoint(
                filename,
                'cpu',
                strict=strict or self.strict or self._resume,
                revise_keys=revise_keys or [(r'^module.', '')],
            )
            weights = checkpoint.get('state_dict', checkpoint)
            own = unwrap(self.model).state_dict()
            check_dtypes(own, weights, filename)
            if not own.keys() & weights.keys():
                raise ValueError(
                    f'no tensor of {filename!r} matches the model: it has {first_of(weights, 3)}, the '
                    f'model {first_of(own, 3)}. '
                    'Weights of a timm model go into a classifier by init_from.'
                )
            if 'meta' in checkpoint:
                checkpoint['meta'].pop('config', None)  # mmengine's resume would execute it
            return checkpoint
        except RuntimeError as error:
            raise ValueError(
                f'checkpoint {filename!r} does not match the model of this config: '
                f'{first_lines(error, 12)}\nUse the config in the work dir of the checkpoint.'
            ) from error
