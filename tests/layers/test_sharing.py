"""The core knows nothing of images: these blocks are not timm's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from masa_vit.layers import SharedLinear, share_linears


class GatedBlock(nn.Module):
    """A block as language models have it: separate maps, two of them of another shape."""

    def __init__(self, dim: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.up(self.q_proj(x)).chunk(2, -1)
        return x + self.down(gate.sigmoid() * up)


LAYOUT = {'q_proj': ['q'], 'up': ['gate', 'up'], 'down': ['down']}


class Stack(nn.Module):
    def __init__(self, depth: int = 4, **kwargs) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[GatedBlock() for _ in range(depth)])
        dictionaries = {'q': ['q'], 'wide': ['gate', 'up'], 'down': ['down']}
        self.banks, self.generator = share_linears(
            self.blocks, LAYOUT, **{'dictionaries': dictionaries, 'num_atoms': 2, **kwargs}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


@pytest.mark.parametrize('coefficients', ['direct', 'mlp'])
def test_any_stack_of_blocks_can_share(coefficients):
    model = Stack(coefficients=coefficients)
    x = torch.randn(3, 8)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert sorted(n for n, _ in model.named_parameters() if 'atoms' in n) == [
        'banks.down.atoms',
        'banks.q.atoms',
        'banks.wide.atoms',
    ]
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.banks['q'].atoms.zero_()
    assert not torch.equal(clone(x), model(x)), 'the copy must draw on its own bank'


def test_composed_layer_equals_its_linear():
    layer = Stack().blocks[1].up
    assert isinstance(layer, SharedLinear)
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), layer.to_linear()(x))
    assert torch.equal(layer.weight, layer.to_linear().weight)


def test_projections_without_a_dictionary_stay_dense():
    torch.manual_seed(0)
    dense = [GatedBlock() for _ in range(3)]
    kept = [block.up.weight.detach().clone() for block in dense]
    share_linears(dense, LAYOUT, {'gate': ['gate']}, num_atoms=2)
    for block, weight in zip(dense, kept, strict=True):
        assert isinstance(block.q_proj, nn.Linear)
        assert isinstance(block.down, nn.Linear)
        assert torch.equal(block.up.weight[12:], weight[12:])
        assert not torch.equal(block.up.weight[:12], weight[:12])


def test_frozen_one_hot_rows_share_whole_matrices():
    one_hot = torch.eye(2)[torch.tensor([0, 0, 1, 1])]
    coef = dict.fromkeys(['q', 'gate', 'up', 'down'], one_hot)
    model = Stack(coefficients='frozen', coef=coef)
    weights = [block.q_proj.weight for block in model.blocks]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert torch.equal(weights[0], model.banks['q'].atoms[0])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_atoms': 5}, r'num_atoms=5 is larger than the number of layers, 4'),
        ({'num_atoms': 0}, r'num_atoms must be an integer >= 1, got 0'),
        ({'coefficients': 'softmax'}, r"coefficients='softmax' is unknown, expected one of"),
        ({'coefficients': 'frozen'}, r'needs the matrix C'),
        ({'coef': {'q': torch.ones(4, 2)}}, r'the other sources take none'),
        (
            {'coefficients': 'frozen', 'coef': {'q': torch.ones(4, 2)}},
            r"coef has no entry for projection 'gate'",
        ),
        (
            {
                'coefficients': 'frozen',
                'coef': dict.fromkeys(['q', 'gate', 'up', 'down'], torch.ones(4, 3)),
            },
            r"coef\['q'\] has shape \(4, 3\), expected .* \(4, 2\)",
        ),
        ({'dictionaries': {}}, r'dictionaries=\{\} is not valid'),
        ({'dictionaries': {'q': ['query']}}, r'expected each to name different projections out of'),
        ({'dictionaries': {'a': ['q'], 'b': ['q']}}, r'expected each to name different'),
        (
            {'dictionaries': {'all': ['q', 'up']}},
            r"'q' \(8, 8\) and 'up' \(12, 8\) have unequal shapes",
        ),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Stack(**kwargs)


def test_layers_of_unequal_shape():
    blocks = [GatedBlock(hidden=12), GatedBlock(hidden=16)]
    with pytest.raises(ValueError, match='only layers of equal shape can share'):
        share_linears(blocks, LAYOUT, {'up': ['up']}, num_atoms=1)


def test_a_block_without_the_linear():
    with pytest.raises(ValueError, match=r"has no 'attn\.qkv'"):
        share_linears([GatedBlock()], {'attn.qkv': 'qkv'}, {'q': 'q'}, num_atoms=1)


def test_projections_of_unequal_size_in_one_linear():
    """Grouped queries: 8 rows of q, 2 of k, 2 of v."""
    sizes = {'q': 8, 'k': 2, 'v': 2}
    blocks = [nn.ModuleDict({'qkv': nn.Linear(8, 12)}) for _ in range(3)]
    banks, _ = share_linears(blocks, {'qkv': sizes}, {'q': 'q', 'kv': 'kv'}, num_atoms=2)
    assert banks['q'].atoms.shape == (2, 8, 8)
    assert banks['kv'].atoms.shape == (2, 2, 8)
    layer = blocks[1]['qkv']
    assert layer(torch.randn(3, 8)).shape == (3, 12)
    assert torch.equal(layer.weight[:8], banks['q'].compose(blocks[1].coef.q))
    assert torch.equal(layer.weight[10:], banks['kv'].compose(blocks[1].coef.v))


def test_rows_that_do_not_fit_the_linear():
    blocks = [nn.ModuleDict({'qkv': nn.Linear(8, 10)})]
    with pytest.raises(ValueError, match='10 outputs does not stack the projections'):
        share_linears(blocks, {'qkv': 'qkv'}, {'q': 'q'}, num_atoms=1)


def test_projections_with_a_common_dictionary_start_uncorrelated():
    model = Stack(num_atoms=4, depth=8)
    for block in model.blocks:
        assert abs(float(block.coef.gate @ block.coef.up)) < 1e-5
