"""Numbers of parameters, with and without sharing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from masa_vit.layers import AtomBank, CoefficientGenerator, CoefficientSource, SharedLinear

_PROJECTION_NAMES = ('qkv', 'q_proj', 'k_proj', 'v_proj', 'proj')


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model; `attention` counts the weights of q, k, v and o, without biases."""

    attention: int
    total: int
    dense_attention: int
    dense_total: int
    shared: bool
    """Whether any weight is composed from atoms."""

    @property
    def attention_removed(self) -> float:
        """Fraction of the attention's weights that sharing removes."""
        return 1 - self.attention / self.dense_attention if self.dense_attention else 0.0

    @property
    def total_removed(self) -> float:
        """Fraction of the whole model's parameters that sharing removes."""
        return 1 - self.total / self.dense_total


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model, ours, dense, or a wrapper of either.

    Of a shared model, the attention's parameters are atoms, coefficients and, if there is one, the
    coefficient MLP; modules under the name ``mlp`` count for the model only. Frozen coefficients are
    not parameters.
    """
    attention = dense = 0
    shared = False
    removed = 0
    for path, module in model.named_modules():
        is_mlp = any(part == 'mlp' or part.startswith('mlp_') for part in path.split('.'))
        if isinstance(module, SharedLinear):
            shared = True
        if is_mlp:
            removed += _mlp_removed(module)
        elif isinstance(module, SharedLinear):
            dense += module.in_features * module.out_features
            attention += sum(p.numel() for n, p in module.named_parameters() if n != 'bias')
        elif isinstance(module, (AtomBank, CoefficientSource, CoefficientGenerator)):
            attention += sum(param.numel() for param in module.parameters())
        elif hasattr(module, 'qkv') or hasattr(module, 'q_proj'):
            linears = [getattr(module, name, None) for name in _PROJECTION_NAMES]
            size = sum(m.weight.numel() for m in linears if isinstance(m, nn.Linear))
            attention += size
            dense += size
    total = sum(param.numel() for param in model.parameters())
    return ParameterCounts(attention, total, dense, total - attention + dense + removed, shared)


def _mlp_removed(module: nn.Module) -> int:
    """Return the dense weights of a shared layer, less those of atoms, coefficients and factors."""
    if isinstance(module, SharedLinear):
        own = sum(p.numel() for n, p in module.named_parameters() if n != 'bias')
        return module.in_features * module.out_features - own
    if isinstance(module, (AtomBank, CoefficientSource, CoefficientGenerator)):
        return -sum(param.numel() for param in module.parameters())
    return 0
