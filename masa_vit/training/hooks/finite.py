"""Stops a training whose loss or gradients are not finite, before its weights change."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS

from masa_vit.training.seeding import NumberedBatches
from masa_vit.training.wrapped_models import unwrap
from masa_vit.utils.messages import first_of

SKIPPED = 'skipped_steps'


class NonFiniteError(ValueError):
    """The loss or the gradients of a training step are NaN or infinite."""


@HOOKS.register_module()
class FiniteHook(Hook):
    """Drops a step whose gradients or loss are NaN or infinite, then stops or continues.

    Steps that a loss scale (float16) leaves out by itself do not count: their loss is finite.

    Args:
        on_nonfinite: `'stop'` ends the training with the step, the learning rate, the parameters and the
            files of the batch; `'skip'` warns, counts `skipped_steps` in the message hub, and continues.
        max_in_a_row: stop after this number of consecutive skipped steps.

    Raises:
        NonFiniteError: from the training.
    """

    priority = 'VERY_HIGH'

    def __init__(self, on_nonfinite: str = 'stop', max_in_a_row: int = 10) -> None:
        if on_nonfinite not in ('stop', 'skip'):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}; expected 'stop' or 'skip'.")
        if max_in_a_row < 1:
            raise ValueError(f'max_in_a_row is {max_in_a_row}; expected at least 1.')
        self.on_nonfinite, self.max_in_a_row = on_nonfinite, max_in_a_row
        self._names: dict[torch.nn.Parameter, str] = {}
        self._faults: list[str] = []
        self._in_a_row = 0

    def before_train(self, runner: Any) -> None:
        """Look at the gradients before every step of the optimizers."""
        self._names = {p: name for name, p in unwrap(runner.model).named_parameters()}
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for one in wrappers:
            one.optimizer.register_step_pre_hook(self._check_gradients)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop, or count the step, if it was dropped or its loss is not finite."""
        loss = torch.as_tensor((outputs or {}).get('loss', 0.0)).item()
        faults, self._faults = self._faults, []
        if not faults and math.isfinite(loss):
            self._in_a_row = 0
            return
        message = _describe(runner, faults, loss, data_batch)
        if self.on_nonfinite == 'stop':
            raise NonFiniteError(
                f'{message}\nThe weights were not changed; the last checkpoint is kept. Use a smaller '
                'learning rate, clip_grad or other data, or leave such steps out: '
                "custom_hooks=[dict(type='FiniteHook', on_nonfinite='skip')]."
            )
        if not faults and not runner.optim_wrapper.should_update():
            return  # gradients are accumulated; the step to come is dropped
        self._in_a_row += 1
        skipped = runner.message_hub.runtime_info.get(SKIPPED, 0) + 1
        runner.message_hub.update_info(SKIPPED, skipped)
        runner.logger.warning(f'{message}\nThe step was skipped; skipped steps so far: {skipped}')
        if self._in_a_row >= self.max_in_a_row:
            raise NonFiniteError(f'{message}\nNow {self._in_a_row} steps in a row were skipped.')

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Drop all gradients if one is not finite: the step then changes nothing."""
        if getattr(optimizer, 'found_inf', None) is not None:
            return  # a fused optimizer with a loss scale leaves the step out by itself
        parameters = [p for g in optimizer.param_groups for p in g['params'] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters], norm_type=math.inf)
        if not torch.isfinite(norm):
            self._faults += [
                self._names.get(p, '?') for p in parameters if not torch.isfinite(p.grad).all()
            ]
            optimizer.zero_grad(set_to_none=True)


def _describe(runner: Any, faults: list[str], loss: float, data_batch: Any) -> str:
    """Step, learning rate, loss, parameters and files."""
    rate = ', '.join(f'{values[0]:.3g}' for values in runner.optim_wrapper.get_lr().values())
    place = f'epoch {runner.epoch + 1}, iteration {runner.iter + 1}'
    lines = [f'the loss is {loss:.4g} in {place}, learning rate {rate}']
    if faults:
        lines.append(f'gradients that are not finite: {first_of(faults, 8)}')
    files = _files(runner, data_batch)
    bad = _not_finite(files, data_batch)
    if bad:
        lines.append(f'inputs that are not finite: {first_of(bad, 8)}')
    elif math.isfinite(loss) and get_world_size() > 1:
        lines.append('the loss of this process is finite: the error of another names the files')
    elif files:
        lines.append(f'files of the batch: {first_of(files, 8)}')
    return '\n'.join(lines)


def _files(runner: Any, data_batch: Any) -> list[str]:
    """Names of the samples of a batch: paths where the dataset has them, else indices."""
    dataset = runner.train_dataloader.dataset
    batches = runner.train_dataloader.batch_sampler
    indices = batches.indices_of(runner.iter) if isinstance(batches, NumberedBatches) else ()
    return [_name(dataset, index) for index in indices]


def _not_finite(files: list[str], data_batch: Any) -> list[str]:
    """The files whose images, as the model gets them, are not finite."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
    if inputs is None or len(inputs) != len(files):
        return []
    images = map(torch.as_tensor, inputs)
    return [
        name for name, image in zip(files, images, strict=True) if not torch.isfinite(image).all()
    ]


def _name(dataset: Any, index: int) -> str:
    if hasattr(dataset, 'paths'):
        return str(dataset.paths[index])
    if hasattr(dataset, 'get_data_info'):  # mmdet
        return str(dataset.get_data_info(index).get('img_path', f'sample {index}'))
    return f'sample {index}'
