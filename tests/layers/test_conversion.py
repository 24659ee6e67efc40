from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from masa_vit.layers import bake_coefficients, fold_linears, share_linears


class Stack(nn.Module):
    """No timm model: its blocks are called `layers`, its projections have long names."""

    def __init__(self, coefficients: str) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(4)]
        self.layers = nn.Sequential(*blocks)
        self.atoms, self.mlp = share_linears(
            self.layers,
            {'0': ['up'], '2': ['down']},
            {'up': ['up'], 'down': ['down']},
            num_atoms=2,
            coefficients=coefficients,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:  # not layer(x): a Sequential would call its `coef`, too
            x = x + layer[2](layer[1](layer[0](x)))
        return x


@pytest.mark.parametrize('coefficients', ['direct', 'mlp'])
def test_bake_and_fold_any_module(coefficients):
    model = Stack(coefficients)
    x = torch.randn(3, 6)
    expected = model(x)
    bake_coefficients(model)
    torch.testing.assert_close(model(x), expected)
    assert model.mlp is None
    folded = copy.deepcopy(model)
    fold_linears(folded)
    # the weight of one layer may be composed by another kernel, which rounds otherwise
    torch.testing.assert_close(folded(x), model(x))
    assert {key.split('.')[0] for key in folded.state_dict()} == {'layers'}
    assert isinstance(folded.layers[0][0], nn.Linear)


def test_bake_keeps_frozen_what_was_frozen():
    model = Stack('mlp').requires_grad_(False)
    bake_coefficients(model)
    assert not any(param.requires_grad for param in model.parameters())


def test_bake_of_a_part():
    model = Stack('mlp')
    with pytest.raises(ValueError, match='bake the whole model'):
        bake_coefficients(model.layers[0][0])
