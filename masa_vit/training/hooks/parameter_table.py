"""The table of parameters, once, before training."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from masa_vit.layers import SharedBlocks
from masa_vit.training.wrapped_models import unwrap


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of a model: attention and all, as they are and as they would be dense.

    Returns:
        The integers of `masa_vit.inspection.ParameterCounts`, or only `total` for a model that it
        does not understand.
    """
    from masa_vit import inspection

    model = unwrap(model)
    try:
        counts = inspection.count_parameters(model)
    except (AttributeError, TypeError, ValueError):
        return {'total': sum(p.numel() for p in model.parameters())}
    names = ('attention', 'total', 'dense_attention', 'dense_total')
    return {name: int(getattr(counts, name)) for name in names}


def partly_frozen(model: nn.Module) -> list[int]:
    """Return the indices of frozen blocks whose atoms or coefficient MLP train."""
    return [
        index
        for blocks in model.modules()
        if isinstance(blocks, SharedBlocks)
        and any(p.requires_grad for part in blocks.shared.values() for p in part.parameters())
        for index, block in enumerate(blocks)
        if not any(param.requires_grad for param in block.parameters())
    ]


@HOOKS.register_module()
class ParameterTableHook(Hook):
    """Logs the parameters of attention and of the model, shared and dense, before training."""

    def before_train(self, runner: Any) -> None:
        """Log the table, and warn if only some of the blocks that share are frozen."""
        if frozen := partly_frozen(runner.model):
            runner.logger.warning(
                f'Blocks {frozen} are frozen, but their weights change: the atoms train, which all '
                'blocks share. Freeze them as well to keep these weights: for part in '
                'model.blocks.shared.values(): part.requires_grad_(False).'
            )
        counts = count_parameters(runner.model)
        if not counts.get('dense_attention'):
            runner.logger.info(f'Parameters: {counts["total"]:,}')
            return
        lines = [f'{"":10}{"this model":>14}{"dense":>14}{"saved":>8}']
        for name in ('attention', 'total'):
            here, dense = counts[name], counts[f'dense_{name}']
            lines.append(f'{name:10}{here:14,}{dense:14,}{1 - here / dense:8.1%}')
        runner.logger.info('Parameters (attention: weights of q, k, v, o):\n' + '\n'.join(lines))
