"""The container: it counts and indexes blocks, and owns what they share."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models import reparameterize_model
from torch import nn

from masa_vit.layers import (
    AtomBank,
    Dictionary,
    SharedBlocks,
    SharedLinear,
    bake_coefficients,
    fuse_children,
    share_linears,
)


class Model(nn.Module):
    """Not a timm model: its blocks are called `layers`, its projections have long names."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        blocks = [nn.ModuleDict({'up': nn.Linear(6, 8), 'down': nn.Linear(8, 6)}) for _ in range(4)]
        self.layers = share_linears(
            blocks,
            {'up': ['wide'], 'down': ['narrow']},
            **{'dictionaries': {'wide': ['wide'], 'narrow': ['narrow']}, 'num_atoms': 2, **kwargs},
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer.down(layer.up(x).relu())
        return self.head(x)


GROUPED = {
    'dictionaries': {
        'wide_0to1': Dictionary(['wide'], [0, 1], 1),
        'wide_2to3': Dictionary(['wide'], [2, 3], 1),
    }
}


def test_it_is_a_sequence_of_blocks():
    blocks = Model().layers
    assert len(blocks) == 4
    assert [*blocks] == [blocks[0], blocks[1], blocks[-2], blocks[3]]
    with pytest.raises(IndexError):
        blocks[4]
    assert [name for name, _ in blocks.named_children()] == ['0', '1', '2', '3', 'banks']


def test_a_slice_keeps_the_banks():
    blocks = Model(coefficients='mlp').layers
    part = blocks[:2]
    assert [*part] == [blocks[0], blocks[1]]
    assert part.banks is blocks.banks
    assert part.generator is blocks.generator
    assert any('atoms' in name for name, _ in part.named_parameters())


def test_unused_banks_are_dropped():
    part = Model(**GROUPED).layers[:2]
    part.drop_unused_banks()
    assert [*part.banks] == ['wide_0to1']


def test_what_is_shared_cannot_be_replaced_as_a_whole():
    blocks = Model(coefficients='mlp').layers
    for name, module in (('banks', nn.ModuleDict()), ('generator', nn.Linear(2, 2))):
        with pytest.raises(AttributeError, match=f'{name!r} cannot be replaced as a whole'):
            setattr(blocks, name, module)
    blocks.eval()
    blocks.note = 'other attributes are free'


@pytest.mark.parametrize('coefficients', ['direct', 'mlp'])
def test_bake_and_fuse_any_module(coefficients):
    model = Model(coefficients=coefficients).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = model(x)
    bake_coefficients(model)
    torch.testing.assert_close(model(x), expected)
    assert [*model.layers.shared] == ['banks']
    fused = copy.deepcopy(model)
    fuse_children(fused)
    assert torch.equal(fused(x), model(x))
    assert not any(isinstance(m, (AtomBank, SharedLinear)) for m in fused.modules())
    assert {key.rpartition('.')[0] for key in fused.state_dict()} == {
        *(f'layers.{i}.{name}' for i in range(4) for name in ('up', 'down')),
        'head',
    }


def test_timm_reparameterizes():
    model = Model().eval()
    x = torch.randn(3, 6)
    fused = reparameterize_model(model)
    assert torch.equal(fused(x), model(x))
    assert type(fused.layers[2].up) is nn.Linear
    assert isinstance(model.layers[2].up, SharedLinear)


def test_bake_keeps_frozen_what_was_frozen():
    model = Model(coefficients='mlp').requires_grad_(False)
    bake_coefficients(model)
    assert not any(param.requires_grad for param in model.parameters())


def test_a_copy_of_a_block_is_refused():
    blocks = Model().layers
    with pytest.raises(ValueError, match='copy the whole model'):
        blocks[1] = copy.deepcopy(blocks[1])
    with pytest.raises(ValueError, match='copy the whole model'):
        SharedBlocks([copy.deepcopy(block) for block in blocks], blocks.shared)
    generated = Model(coefficients='mlp').layers
    with pytest.raises(ValueError, match='copy the whole model'):
        generated[0] = Model(coefficients='mlp').layers[0]
    blocks[-1] = blocks[0]
    assert blocks[3] is blocks[0]


def test_parts_are_fused():
    layer = Model().layers[0].up
    fused = nn.Sequential(layer)
    fuse_children(fused)
    assert type(fused[0]) is nn.Linear
    blocks = nn.Sequential(*Model().layers)
    fuse_children(blocks)
    assert not any('coef' in name for name in blocks.state_dict())


def test_bake_of_a_part():
    model = Model(coefficients='mlp')
    with pytest.raises(ValueError, match='bake the whole model'):
        bake_coefficients(model.layers[0])


def test_fuse_keeps_frozen_what_was_frozen():
    model = Model()
    model.layers.requires_grad_(False)
    fuse_children(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        'head.weight',
        'head.bias',
    ]
