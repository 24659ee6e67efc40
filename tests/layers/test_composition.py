"""Every way to compose gives the numbers of ordinary operations, and a pass composes when it should."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from stacks import LAYOUT, Stack, assert_same_gradients, gradients, twins
from torch import nn

from masa_vit.layers import composing


def test_output_and_gradients(composition, choice, x):
    model, plain = twins(composition, **choice)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outs = [m(i) for m, i in zip((model, plain), inputs, strict=True)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert_same_gradients(model, plain)


def test_a_block_alone_gives_the_same(composition, x):
    model = Stack(composition).double()
    alone = x
    for block in model.blocks:
        alone = block(alone)
    torch.testing.assert_close(alone, model(x))


def test_a_layer_that_is_wrapped_composes_for_itself(composition, x):
    """As adapters do it."""
    model, plain = twins(composition)
    model.blocks[1].up = nn.Sequential(model.blocks[1].up)
    model.blocks[2].qkv = nn.ModuleDict({'inner': model.blocks[2].qkv})
    model.blocks[2].forward = lambda x: x
    plain.blocks[2].forward = lambda x: x
    for m in (model, plain):
        m(x).square().sum().backward()
    for got, want in zip(model.banks.parameters(), plain.banks.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_gradients_wanted_inside_a_pass_without(composition, x):
    model, plain = twins(composition)
    for m in (model, plain):
        scope = composing(m.blocks, LAYOUT, x, composition) if m is model else nullcontext()
        with torch.no_grad(), scope:
            out = m.blocks[0](x)
            with torch.enable_grad():
                out = m.blocks[1](out)
        out.square().sum().backward()
    torch.testing.assert_close(model.banks['q'].atoms.grad, plain.banks['q'].atoms.grad)


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_composed_weight_once(composition, choice, low, x):
    """Stated tolerance of the composition: that of one rounding of the float32 weight."""
    model, plain = twins(composition, torch.float32, **choice)
    outs = []
    for m in (model, plain):
        with torch.autocast('cpu', dtype=low):
            outs.append(m(x.float()))
        outs[-1].float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in m.parameters() if p.requires_grad)
    torch.testing.assert_close(*outs, atol=0.02, rtol=0.02)
    scale = max(g.abs().max() for g in gradients(plain).values())
    torch.testing.assert_close(gradients(model), gradients(plain), atol=0.02 * scale, rtol=0)


@pytest.mark.parametrize('composition', ['kept', 'joint'])
def test_autocast_composes_into_its_own_dtype(composition, x, monkeypatch):
    """No float32 copy of all weights is made and cast."""
    sizes = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, 'empty', lambda *a, **k: sizes.append((a[0], k.get('dtype'))) or empty(*a, **k)
    )
    model = Stack(composition)
    sizes.clear()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(x.float())
    assert sizes == [((4, n), torch.bfloat16) for n in (16 * 8, 24 * 8, 8 * 12)]


def test_half_precision_models(composition, x):
    model = Stack(composition).bfloat16()
    model(x.bfloat16()).sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
    with pytest.raises(RuntimeError, match='dtype'):
        model(x)


def test_a_pass_without_gradients_inside_and_around(composition, x):
    model, plain = twins(composition)
    with torch.no_grad():
        assert not model(x).requires_grad
    with composing(model.blocks, LAYOUT, x, composition):
        with torch.no_grad():
            out = model.blocks[0](x)
        model.blocks[1](out).sum().backward()
    with torch.no_grad():
        out = plain.blocks[0](x)
    plain.blocks[1](out).sum().backward()
    want, got = plain.banks['q'].atoms.grad, model.banks['q'].atoms.grad
    torch.testing.assert_close(got, want)


def test_passes_of_two_models_nest(composition, x):
    outer, inner = Stack(composition).double(), Stack(composition).double()
    expected = outer(inner(x))
    with composing(outer.blocks, LAYOUT, x, composition):
        out = inner(x)
        for block in outer.blocks:
            out = block(out)
    torch.testing.assert_close(out, expected)


def test_a_backward_pass_before_the_scope_is_left(x, monkeypatch):
    """Gradients lie where the weights were: a further call must not take them for weights."""
    monkeypatch.setattr('masa_vit.layers.composition._SMALL', 0)
    model, plain = twins('joint')
    with composing(model.blocks, LAYOUT, x):
        for _ in range(2):
            model.blocks[0](x).square().sum().backward()
    for _ in range(2):
        plain.blocks[0](x).square().sum().backward()
    for got, want in zip(model.banks.parameters(), plain.banks.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)
