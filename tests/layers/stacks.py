"""Blocks that are not timm's, and ways to compose their weights."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers import Dictionary, SharedLinear, composing, share_linears

LAYOUT = {'qkv': {'q': 8, 'k': 4, 'v': 4}, 'up': ['gate', 'up'], 'down': ['down']}
"""Grouped queries, two projections in one linear, and one alone."""

CHOICES = {
    'direct': {},
    'mlp': {'coefficients': 'mlp', 'coef_embed_dim': 6, 'coef_hidden_dim': 5},
    'frozen': {
        'coefficients': 'frozen',
        'coef': {n: torch.eye(2)[[0, 0, 1, 1]] for n in ('q', 'k', 'v', 'gate', 'up', 'down')},
    },
    'mixed': {'dictionaries': {'q': ['q'], 'v': ['v'], 'gate': ['gate']}},
    'groups': {
        'dictionaries': {
            'q_0_2': Dictionary(['q'], [0, 2], 2),
            'q_1_3': Dictionary(['q'], [1, 3], 1),
            'kv': Dictionary('kv', range(4), 3),
            'down_0': Dictionary(['down'], [0], 1),
            'down_1to3': Dictionary(['down'], [1, 2, 3], 2),
        }
    },
    'residual': {
        'residual_ranks': {'q': [1, 0, 2, 1], 'v': [1, 1, 1, 0], 'down': [0, 3, 0, 1]},
        'dictionaries': {'q': ['q'], 'v': ['v'], 'down': ['down']},
    },
}
"""Sources of coefficients; 'mixed': stacks of which some projections stay dense; 'groups': of layers,
with banks of their own; 'residual': weights that are partly a layer's own."""


class Block(nn.Module):
    def __init__(self, dim: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 2 * dim, bias=False)
        self.up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split([8, 4, 4], -1)
        x = x + q.tanh() * torch.cat([k, v], -1)
        gate, up = self.up(x).chunk(2, -1)
        return x + self.down(gate.sigmoid() * up)


class Stack(nn.Module):
    """Four blocks, composed in the way that `composition` says; 'plain': by ordinary operations."""

    def __init__(self, composition: str = 'kept', **kwargs) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        dictionaries = {'q': ['q'], 'kv': ['k', 'v'], 'wide': ['gate', 'up'], 'down': ['down']}
        self.banks, self.generator = share_linears(
            self.blocks, LAYOUT, **{'dictionaries': dictionaries, 'num_atoms': 2, **kwargs}
        )
        for layer in self.layers():  # residuals start at zero, with which little can go wrong
            for name in layer.ranks:
                nn.init.normal_(layer.get_parameter(f'up_{name}'), std=0.2)
        self.composition = composition

    def layers(self) -> list[SharedLinear]:
        return [m for m in self.modules() if isinstance(m, SharedLinear)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.composition == 'plain':
            return self.plain(x)
        with composing(self.blocks, LAYOUT, x, self.composition):
            for block in self.blocks:
                x = block(x)
        return x

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """Run with weights composed by ordinary operations (in one thread only)."""
        saved = SharedLinear.forward
        SharedLinear.forward = lambda layer, x: F.linear(x, layer.compose_weight(), layer.bias)
        try:
            for block in self.blocks:
                x = block(x)
        finally:
            SharedLinear.forward = saved
        return x


def twins(composition: str, dtype=torch.float64, **choice) -> tuple[Stack, Stack]:
    """A model, and its copy that composes by ordinary operations."""
    model = Stack(composition, **choice).to(dtype)
    plain = copy.deepcopy(model)
    plain.composition = 'plain'
    return model, plain


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None for g in grads.values())
    return grads


def assert_same_gradients(model: nn.Module, plain: nn.Module) -> None:
    torch.testing.assert_close(gradients(model), gradients(plain))
