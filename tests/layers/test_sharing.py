"""The core knows nothing of images: these blocks are not timm's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from masa_vit.layers import Dictionary, SharedBlocks, share_linears


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
        blocks = [GatedBlock() for _ in range(depth)]
        dictionaries = {'q': ['q'], 'wide': ['gate', 'up'], 'down': ['down']}
        self.blocks = share_linears(
            blocks, LAYOUT, **{'dictionaries': dictionaries, 'num_atoms': 2, **kwargs}
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
        'blocks.banks.down.atoms',
        'blocks.banks.q.atoms',
        'blocks.banks.wide.atoms',
    ]
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.blocks.banks['q'].atoms.zero_()
    assert not torch.equal(clone(x), model(x)), 'the copy must draw on its own bank'


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
    assert torch.equal(weights[0], model.blocks.banks['q'].atoms[0])
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
        ({'residual_ranks': {'v': [1] * 4}}, r"given for \['v'\], expected projections out of"),
        (
            {'coefficients': 'mlp', 'dictionaries': GROUPED},
            r"the groups have different numbers of atoms: \{'q': \{1, 2\}\}",
        ),
        (
            {'coefficients': 'frozen', 'dictionaries': GROUPED, 'coef': {'q': torch.ones(4, 2)}},
            r"coef\['q'\] has shape \(4, 2\), expected .* \(4, 1 or 2\)",
        ),
        ({'dictionaries': {'q_0': ['q']}}, r"'q_0': a name that ends in numbers"),
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
    banks = share_linears(blocks, {'qkv': sizes}, {'q': 'q', 'kv': 'kv'}, num_atoms=2).banks
    assert banks['q'].atoms.shape == (2, 8, 8)
    assert banks['kv'].atoms.shape == (2, 2, 8)
    layer = blocks[1]['qkv']
    assert layer(torch.randn(3, 8)).shape == (3, 12)
    assert torch.equal(layer.weight[:8], banks['q'](blocks[1].coef.q))
    assert torch.equal(layer.weight[10:], banks['kv'](blocks[1].coef.v))


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
    assert {name: bank.num_atoms for name, bank in model.blocks.banks.items()} == {
        'q_0': 1,
        'q_1to3': 2,
    }
    torch.testing.assert_close(
        model.blocks[0].q_proj.weight, model.blocks.banks['q_0'](model.blocks[0].coef.q)
    )
    before = model.blocks[0].q_proj.weight
    with torch.no_grad():
        model.blocks.banks['q_1to3'].atoms.zero_()
    assert torch.equal(model.blocks[0].q_proj.weight, before)
    assert not model.blocks[2].q_proj.weight.any()


def test_attention_and_mlp_share_in_two_calls():
    blocks = [
        nn.ModuleDict({'attn': nn.ModuleDict({'o': nn.Linear(8, 8)}), 'mlp': GatedBlock()})
        for _ in range(4)
    ]
    layout = {'mlp.down': ['down'], 'mlp.up': ['gate', 'up']}
    with pytest.raises(ValueError, match=r"lie in \['attn', 'mlp'\]: share those of one module"):
        share_linears(blocks, {'attn.o': ['o'], **layout}, {'o': ['o']}, 2)
    once = share_linears(blocks, {'attn.o': ['o']}, {'o': ['o']}, 2, 'mlp')
    both = share_linears(once, layout, {'wide': ['gate', 'up']}, 2)
    assert isinstance(both, SharedBlocks)
    assert [*both.shared] == ['attn_banks', 'attn_generator', 'mlp_banks']
    assert {n for n, _ in both[3].named_parameters() if 'coef' in n} == {
        'attn.coef.embedding',
        'mlp.coef.gate',
        'mlp.coef.up',
    }
    both[0].attn.o(torch.randn(2, 8)).sum().backward()
    assert both.attn_banks['o'].atoms.grad is not None
    with pytest.raises(ValueError, match="'mlp' in block 0 has a `coef` already"):
        share_linears(both, {'mlp.q_proj': ['q']}, {'q': ['q']}, 2)
    with pytest.raises(ValueError, match=r"projections \['o'\] share already"):
        share_linears(once, {'mlp.down': ['o']}, {'o': ['o']}, 2)
