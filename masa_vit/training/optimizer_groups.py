"""Optimizer groups from the model's own methods, and mixed precision without a loss scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner.amp import autocast
from timm.optim import param_groups_layer_decay
from torch import nn

from masa_vit.layers import AtomBank, CoefficientGenerator, CoefficientSource
from masa_vit.training.wrapped_models import unwrap
from masa_vit.utils.messages import first_of

_KINDS: tuple[Any, ...] = (AtomBank, (CoefficientSource, CoefficientGenerator))


@dataclass
class _Group:
    """Parameters of equal learning rate and weight decay."""

    lr_scale: float
    weight_decay: float
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates and weight decay as the model itself places its parameters.

    Every submodule with a `group_matcher()` (a timm model, within a classifier or the backbone of
    a detector) is grouped by timm, by that method and `no_weight_decay()`. All other parameters
    (necks, heads) get the full learning rate; they are the layer after the last one of a timm model
    without a classifier, as in ViTDet. One-dimensional parameters (norms, biases) are
    never decayed.

    Groups of equal settings are merged, the one with the full rate first (logs show its rate).

    Args:
        optim_wrapper_cfg: `dict(type=..., optimizer=dict(type='AdamW', lr=..., weight_decay=...))`;
            any optimizer in mmengine's OPTIMIZERS (all of torch's).
        paramwise_cfg: `dict(layer_decay=0.75)`: rate of a layer over that of the next; None or 1
            for equal rates. `atom_lr_mult` and `coef_lr_mult` multiply the rates of atoms and of
            coefficients (and their MLP).

    Raises:
        ValueError: an unknown key in `paramwise_cfg`, no `lr`, a decay outside (0, 1], a multiplier
            that is not positive, or a trainable parameter that is in no group or in two.
    """

    def _validate_cfg(self) -> None:
        known = ('layer_decay', 'atom_lr_mult', 'coef_lr_mult')
        unknown = set(self.paramwise_cfg) - set(known)
        if unknown:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg: unknown {sorted(unknown)}; expected {", ".join(known)} '
                f'(or another constructor than {type(self).__name__}).'
            )
        self.multipliers = [self.paramwise_cfg.get(key, 1.0) for key in known[1:]]
        if not all(multiplier > 0 for multiplier in self.multipliers):
            raise ValueError(
                f'optim_wrapper.paramwise_cfg: {known[1]} and {known[2]} are {self.multipliers}; '
                'expected positive numbers.'
            )
        decay = self.paramwise_cfg.get('layer_decay')
        self.layer_decay = 1.0 if decay is None else decay
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg.layer_decay is {decay!r}; expected a number in '
                '(0, 1], or None.'
            )
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer has no lr; give it, e.g. lr=1e-3.')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer over the groups and print their table."""
        model = unwrap(model)
        groups = self.groups(model)
        optimizer = OPTIMIZERS.build(
            dict(
                self.optimizer_cfg,
                params=[
                    dict(
                        params=g.params,
                        lr=self.base_lr * g.lr_scale,
                        weight_decay=g.weight_decay,
                    )
                    for g in groups
                ],
            )
        )
        print_log(_table(groups, self.base_lr), logger='current')
        cfg = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        wrapper = OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=optimizer))
        # mmengine would log it beside `lr`; the first group already has the full rate
        wrapper.base_param_settings = None
        return wrapper

    def groups(self, model: nn.Module) -> list[_Group]:
        """The merged groups of a model."""
        names = {id(p): name for name, p in model.named_parameters()}
        weight_decay = self.base_wd or 0.0
        merged: dict[tuple[float, float], _Group] = {}

        multiplier = {
            id(param): of_kind
            for kinds, of_kind in zip(_KINDS, self.multipliers, strict=True)
            for module in model.modules()
            if isinstance(module, kinds)
            for param in module.parameters()
        }

        def add(params: list[nn.Parameter], lr_scale: float, decay: float) -> None:
            for param in params:
                scale = lr_scale * multiplier.get(id(param), 1.0)
                group = merged.setdefault((scale, decay), _Group(scale, decay))
                group.params.append(param)
                group.names.append(names[id(param)])

        for module in _grouped_modules(model):
            # timm gives the last layer the full rate, which here belongs to the heads
            last = 1.0 if _has_classifier(module) else self.layer_decay
            for group in param_groups_layer_decay(
                module,
                weight_decay=weight_decay,
                no_weight_decay_list=module.no_weight_decay()
                if hasattr(module, 'no_weight_decay')
                else (),
                layer_decay=self.layer_decay,
            ):
                add(group['params'], group['lr_scale'] * last, group['weight_decay'])
        placed = {id(p) for group in merged.values() for p in group.params}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in placed:
                add([parameter], 1.0, weight_decay if parameter.ndim > 1 else 0.0)

        self._check(model, merged.values())
        # the full rate first, then downwards; decayed before not decayed
        return sorted(
            merged.values(), key=lambda g: (g.lr_scale != 1, -g.lr_scale, -g.weight_decay)
        )

    @staticmethod
    def _check(model: nn.Module, groups: Iterable[_Group]) -> None:
        count = Counter(id(p) for group in groups for p in group.params)
        for name, parameter in model.named_parameters():
            if count[id(parameter)] != int(parameter.requires_grad):
                raise ValueError(
                    f'parameter {name!r} is in {count[id(parameter)]} optimizer groups, expected '
                    f'{int(parameter.requires_grad)}: two modules of {type(model).__name__} with a '
                    'group_matcher() share it.'
                )


def _grouped_modules(model: nn.Module) -> list[Any]:
    """The outermost modules that know the groups of their parameters."""
    if hasattr(model, 'group_matcher'):
        return [model]
    return [found for child in model.children() for found in _grouped_modules(child)]


def _has_classifier(module: Any) -> bool:
    classifier = module.get_classifier() if hasattr(module, 'get_classifier') else module
    return any(True for _ in classifier.parameters())


def _table(groups: list[_Group], lr: float) -> str:
    lines = [f'{"lr":>10} {"lr scale":>9} {"decay":>6} {"tensors":>8} {"parameters":>12}  of']
    for group in groups:
        count = sum(p.numel() for p in group.params)
        lines.append(
            f'{lr * group.lr_scale:10.3g} {group.lr_scale:9.4f} {group.weight_decay:6.3g} '
            f'{len(group.params):8} {count:12,}  {first_of(group.names, 2)}'
        )
    return 'Optimizer groups:\n' + '\n'.join(lines)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward and loss in bfloat16 autocast, on the CPU as well; needs no loss scale.

    mmengine's AmpOptimWrapper refuses the CPU and scales the loss, which bfloat16 needs not.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context in which the model runs."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
