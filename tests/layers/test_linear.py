"""A shared linear layer behaves as an ordinary one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers import SharedBlocks, SharedLinear, share_linears

CHOICES = {
    'direct': {},
    'mlp': {'coefficients': 'mlp', 'coef_embed_dim': 6, 'coef_hidden_dim': 5},
    'k_dense': {'dictionaries': {'q': 'q', 'v': 'v'}},
    'common': {'dictionaries': {'qkv': 'qkv'}},
    'residual': {'residual_ranks': {'q': [1, 0, 2], 'v': [1, 1, 1]}},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + q.tanh() * k * v


def make(**kwargs) -> SharedBlocks:
    blocks = [Block() for _ in range(3)]
    dictionaries = {'q': 'q', 'k': 'k', 'v': 'v'}
    shared = share_linears(
        blocks, {'qkv': 'qkv'}, **{'dictionaries': dictionaries, 'num_atoms': 2, **kwargs}
    )
    for name, param in shared.named_parameters():  # residuals start at zero: nothing to see
        if '.up_' in name:
            nn.init.normal_(param)
    return shared.double()


@pytest.fixture(params=CHOICES)
def blocks(request) -> SharedBlocks:
    return make(**CHOICES[request.param])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 6, dtype=torch.float64)


def test_weight_is_composed(blocks):
    for block in blocks:
        layer, coef = block.qkv, block.coef()
        for name, rows in zip('qkv', layer.weight.chunk(3), strict=True):
            if name in layer.bank_of:
                atoms = layer.banks[name].atoms
                expected = torch.einsum('s,soi->oi', coef[name], atoms)
                if name in layer.ranks:
                    expected = expected + layer.get_parameter(f'up_{name}') @ layer.get_parameter(
                        f'down_{name}'
                    )
            else:
                expected = layer.get_parameter(f'dense_{name}')
            torch.testing.assert_close(rows, expected)


def test_forward_is_the_linear_layer_with_that_weight(blocks, x):
    layer = blocks[1].qkv
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    fused = layer.fuse()
    assert type(fused) is nn.Linear
    assert torch.equal(fused(x), layer(x))


def test_gradients_are_correct(blocks, x):
    params = list(blocks.parameters())

    def run(x, *values):
        names = [name for name, _ in blocks.named_parameters()]
        return torch.func.functional_call(blocks, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x[:1, :2], *params), fast_mode=True)
    blocks(x).sum().backward()
    assert all(param.grad is not None for param in params)


def test_a_residual_starts_at_zero():
    torch.manual_seed(0)
    shared = share_linears(
        [Block() for _ in range(3)], {'qkv': 'qkv'}, {'q': 'q'}, 2, residual_ranks={'q': [2, 0, 1]}
    )
    layer = shared[0].qkv
    assert (layer.down_q.shape, layer.up_q.shape) == ((2, 6), (6, 2))
    assert not hasattr(shared[1].qkv, 'down_q')
    composed = layer.banks['q'](layer.coef()['q'])
    assert torch.equal(layer.weight[:6], composed)


def test_the_weight_cannot_be_assigned(blocks):
    layer = blocks[0].qkv
    with pytest.raises(AttributeError, match='write into the atoms'):
        layer.weight = torch.zeros(18, 6)
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.zeros(18, 6))
    with pytest.raises(AttributeError):
        del layer.weight


def test_replacing_a_bank_or_a_source_takes_effect(x):
    blocks = make()
    other = make()
    before = blocks(x)
    blocks.banks['q'] = other.banks['q']
    changed = blocks(x)
    assert not torch.equal(changed, before)
    blocks[2].coef = other[2].coef
    assert not torch.equal(blocks(x), changed)
    assert torch.equal(blocks[2].qkv.weight[:6], other.banks['q'](other[2].coef.q))


@pytest.mark.parametrize('part', ['banks', 'generator', 'coef', 'bias'])
def test_parameters_on_the_meta_device_are_an_error(x, part):
    blocks = make(coefficients='mlp' if part == 'generator' else 'direct')
    if part == 'bias':
        blocks[0].qkv.bias = nn.Parameter(blocks[0].qkv.bias.to('meta'))
    else:
        (blocks[0].coef if part == 'coef' else getattr(blocks, part)).to('meta')
    with pytest.raises(RuntimeError, match='meta'):
        blocks(x)


def test_a_model_on_the_meta_device_gives_shapes(blocks, x):
    assert blocks.to('meta')(x.to('meta')).shape == x.shape


def test_autocast_rounds_the_composed_weight_once(blocks, x):
    blocks, x = blocks.float(), x.float()
    layer = blocks[0].qkv
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
        assert layer.weight.dtype == torch.float32
        expected = F.linear(x, layer.fuse().weight, layer.bias)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_copies_draw_on_their_own_banks(blocks, x):
    clone = copy.deepcopy(blocks)
    assert torch.equal(clone(x), blocks(x))
    with torch.no_grad():
        for param in clone.parameters():
            param.zero_()
    assert blocks[0].qkv.weight.any()
    assert not clone[0].qkv.weight.any()


def test_torchscript_is_refused(blocks):
    for module in (blocks, blocks[0].qkv):
        with pytest.raises(TypeError, match=r'script masa_vit\.fold\(model\)'):
            torch.jit.script(module)


def test_all_shared_layers_look_like_linear_layers(blocks):
    layer = blocks[0].qkv
    assert isinstance(layer, SharedLinear)
    assert (layer.in_features, layer.out_features) == (6, 18)
    assert layer.weight.shape == (18, 6)
    assert layer.bias.shape == (18,)
