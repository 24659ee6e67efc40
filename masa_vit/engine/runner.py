"""mmengine's Runner with reproducible epochs, a readable console and strict checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.runner import Runner as _Runner
from torch import nn
from torch.utils.data import DataLoader

from masa_vit.engine.hooks.seed import EpochSeedHook
from masa_vit.engine.seeding import SeededDataset

# What mmengine tells the console on every start, and what a reader finds in the log file.
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


def _for_console(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    within_validation = message.startswith(('Epoch(val)', 'Epoch(test)')) and 'eta:' in message
    return not (within_validation or message.startswith(_FILE_ONLY))


class Runner(_Runner):
    """A Runner for any task; what differs from mmengine's:

    - epochs are seeded by their number (`masa_vit.engine.seeding`), so a resumed run repeats;
    - environment, config and hooks go to the log file only, not to the console;
    - a resumed or tested checkpoint must fit the model exactly (`load_from` alone may fit partly).
    """

    strict = False  # set by `test`: the checkpoint must fit

    _timestamp: str
    _timestamps: ClassVar[set[str]] = set()

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """As mmengine's, with a time stamp of its own for every run of this process.

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
        """As mmengine's, one per run: a name in the config is shared by all runs of a process."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.experiment_name}
        return super().build_visualizer(visualizer)

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """mmengine's default hooks and the one that seeds the epochs."""
        super().register_default_hooks(hooks)
        self.register_hook(EpochSeedHook())

    def _init_model_weights(self) -> None:
        """As mmengine's, unless a checkpoint is about to replace all weights."""
        if not self._resume:
            super()._init_model_weights()

    def train(self) -> nn.Module:
        """As mmengine's; hooks with a `close` are closed also after an error."""
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if hasattr(hook, 'close'):
                    hook.close()

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """As mmengine's, with the dataset of loaders that have workers in a `SeededDataset`."""
        if seed is not None and isinstance(dataloader, dict):
            # a generator of its own: starting a loader must not draw from the global one
            dataloader = {'generator': torch.Generator().manual_seed(seed), **dataloader}
            if dataloader.get('num_workers', 0):
                # as a config, for mmengine copies deeply what it is given, shared memory and all
                dataset = dict(dataset=dataloader['dataset'], seed=seed, rank=get_rank())
                dataloader['dataset'] = dict(type=SeededDataset, **dataset)
        return _Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: list[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """As mmengine's, always onto the CPU; strict when resuming or testing.

        Loading copies to the parameters' device anyhow. On a GPU the step counters of AdamW would
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
            if isinstance(checkpoint.get('meta'), dict):
                checkpoint['meta'].pop('config', None)  # mmengine's resume would execute it
            return checkpoint
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise ValueError(
                f'checkpoint {filename!r} does not fit the model of this config:\n'
                + '\n'.join(line[:240] for line in lines[:12])
                + '\nUse the config that the checkpoint was trained with (it lies beside it).'
            ) from error
