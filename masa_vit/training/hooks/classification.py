"""Hooks for classification datasets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from masa_vit.training.image_datasets import IGNORE_INDEX
from masa_vit.training.wrapped_models import unwrap
from masa_vit.utils.messages import first_of

__all__ = ['NumClassesCheckHook', 'SkippedImagesHook']


@HOOKS.register_module()
class NumClassesCheckHook(Hook):
    """Refuse to start when the model's head and the datasets' classes do not fit."""

    def before_train(self, runner: Any) -> None:
        """Compare head, training and validation classes."""
        train = _classes(runner.train_dataloader)
        self._check_head(runner, 'training', train)
        if runner.val_loop is not None:
            val = _classes(runner.val_dataloader)
            if train is not None and val is not None and list(train) != list(val):
                raise ValueError(_difference(list(train), list(val)))

    def before_val(self, runner: Any) -> None:
        """Compare head and validation classes."""
        self._check_head(runner, 'validation', _classes(runner.val_dataloader))

    def before_test(self, runner: Any) -> None:
        """Compare head and test classes."""
        self._check_head(runner, 'test', _classes(runner.test_dataloader))

    def _check_head(self, runner: Any, split: str, classes: Sequence[str] | None) -> None:
        model = unwrap(runner.model)
        num_classes = getattr(model, 'num_classes', None)
        if num_classes is None or classes is None or len(classes) == num_classes:
            return
        raise ValueError(
            f'the model has num_classes={num_classes}, the {split} data has {len(classes)} classes '
            f'({first_of(classes)}).\n'
            f'Set model.num_classes to {len(classes)}, or correct data_root.'
        )


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """Log after every epoch the number of images that ``on_error='skip'`` left out, on all ranks.

    An image that a sampler gives twice, so that all ranks have equally many, counts twice.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        # by mode: where training goes by iterations, validation happens within its one epoch
        self._skipped: Counter[str] = Counter()

    def _before_epoch(self, runner: Any, mode: str = 'train') -> None:
        self._skipped[mode] = 0

    def _after_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
        mode: str = 'train',
    ) -> None:
        if isinstance(data_batch, dict) and 'targets' in data_batch:
            self._skipped[mode] += int((data_batch['targets'] == IGNORE_INDEX).sum())

    def _after_epoch(self, runner: Any, mode: str = 'train') -> None:
        skipped = torch.tensor(self._skipped[mode])
        all_reduce(skipped)
        if skipped:
            # with the iteration the text is new: the logger drops a warning that it has logged before
            runner.logger.log(
                logging.WARNING,
                f'{mode}: {skipped.item()} images, on all ranks together, could not be read and were '
                f'skipped in the epoch up to iteration {runner.iter}; their paths are logged above',
            )


def _classes(dataloader: Any) -> Sequence[str] | None:
    return getattr(dataloader.dataset, 'metainfo', {}).get('classes')


def _difference(train: list[str], val: list[str]) -> str:
    only_train = [name for name in train if name not in val][:10]
    only_val = [name for name in val if name not in train][:10]
    where = '; '.join(
        f'only in {split}: {", ".join(names)}'
        for split, names in (('training', only_train), ('validation', only_val))
        if names
    )
    return (
        f'training and validation data have different classes ({len(train)} and {len(val)}; '
        f'{where or "the same names in another order"}): class indices would not match.\n'
        'Give both the same class folders, or the same `classes` list in the config.'
    )
