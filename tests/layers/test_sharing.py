"""The core knows nothing of images: these blocks are not timm's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from masa_vit.layers import Dictionary, SharedLinear, fold_linears, share_linears


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


GROUPED = {'q_0': Dictionary(['q'], [0], 1), 'q_1to3': Dictionary(['q'], [1, 2, 3], 2)}


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
            {'dictionaries': {'a': Dictionary(['q'], [0, 1], 1)}},
            r'every layer out of 4 to draw on one dictionary',
        ),
        (
            {'dictionaries': {'a': Dictionary('q', [0, 1, 2], 1), 'b': Dictionary('q', [2, 3], 1)}},
            r'expected each to name different',
        ),
        (
            {'dictionaries': {'a': Dictionary(['up', 'gate'], range(4), 9)}},
            r"num_atoms=9 is larger than the number of weights, 8, that share dictionary 'a'",
        ),
        (
            {'residual_ranks': {'q': [1, 1, 1]}},
            r"residual ranks of 'q' are \[1, 1, 1\], expected 4 integers from 0 to 8",
        ),
        ({'residual_ranks': {'q': [1, 9, 1, 1]}}, r'integers from 0 to 8'),
        ({'residual_ranks': {'v': [1] * 4}}, r"given for \['v'\], but .* share"),
        (
            {'coefficients': 'mlp', 'dictionaries': GROUPED},
            r"the groups have different numbers of atoms: \{'q': \{1, 2\}\}",
        ),
        (
            {'coefficients': 'frozen', 'dictionaries': GROUPED, 'coef': {'q': torch.ones(4, 2)}},
            r"coef\['q'\] has shape \(4, 2\), expected .* \(4, 1 or 2\)",
        ),
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


def test_groups_of_layers_have_banks_of_their_own():
    model = Stack(dictionaries=GROUPED)
    assert {name: bank.num_atoms for name, bank in model.banks.items()} == {'q_0': 1, 'q_1to3': 2}
    torch.testing.assert_close(
        model.blocks[0].q_proj.weight, model.banks['q_0'].compose(model.blocks[0].coef.q)
    )
    before = model.blocks[0].q_proj.weight
    with torch.no_grad():
        model.banks['q_1to3'].atoms.zero_()
    assert torch.equal(model.blocks[0].q_proj.weight, before)
    assert not model.blocks[2].q_proj.weight.any()


def test_a_residual_starts_at_zero_and_is_folded():
    torch.manual_seed(0)
    model = Stack(residual_ranks={'q': [2, 0, 1, 3], 'up': [1] * 4})
    layer = model.blocks[0].up
    assert layer.ranks == {'up': 1}
    assert (layer.down_up.shape, layer.up_up.shape) == ((1, 8), (12, 1))
    assert not hasattr(model.blocks[1].q_proj, 'down_q')
    x = torch.randn(3, 8)
    alone = copy.deepcopy(model)
    for block in alone.blocks:
        block.q_proj.ranks = block.up.ranks = {}
    torch.testing.assert_close(model(x), alone(x), atol=0, rtol=0)
    with torch.no_grad():
        for block in model.blocks:
            block.up.up_up.normal_()
    folded = copy.deepcopy(model)
    fold_linears(folded)
    assert not torch.allclose(model(x), alone(x))
    torch.testing.assert_close(folded(x), model(x))
