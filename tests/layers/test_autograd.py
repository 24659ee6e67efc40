"""Gradients are those of ordinary operations, whatever is done with the graph."""

from __future__ import annotations

import pytest
import torch
from stacks import CHOICES, LAYOUT, Stack, assert_same_gradients, twins
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from masa_vit.layers import composing


@pytest.mark.parametrize('choice', ['direct', 'mlp', 'mixed'])
def test_gradcheck(composition, choice):
    model = Stack(composition, **CHOICES[choice]).double()
    names, params = zip(*model.named_parameters(), strict=True)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)

    def run(x, *params):
        return functional_call(model, dict(zip(names, params, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *params), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *params), fast_mode=True)


def test_backward_twice(composition, choice, x):
    model, plain = twins(composition, **choice)
    for m in (model, plain):
        loss = m(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match='second time'):
            loss.backward()
    assert_same_gradients(model, plain)


def test_frozen_weights_and_two_graphs(composition, x):
    """Nothing of the composition is in these graphs, and they need the weights all the same."""
    model, plain = twins(composition)
    for m in (model, plain):
        m.banks.requires_grad_(False)
        for block in m.blocks:
            block.coef.requires_grad_(False)
        inputs = x.clone().requires_grad_()
        first, second = m(inputs), m(inputs + 1)
        (first.square().sum() + second.sum()).backward()
        m.got = inputs.grad
    torch.testing.assert_close(model.got, plain.got)


def test_a_batch_of_gradients(composition, choice, x):
    model, plain = twins(composition, **choice)
    jacobians = []
    for m in (model, plain):
        out = m(x)[0, 0]
        params = [p for p in m.parameters() if p.requires_grad]
        jacobians.append(
            torch.autograd.grad(out, params, torch.eye(8).double(), is_grads_batched=True)
        )
    torch.testing.assert_close(*jacobians)


def test_two_forwards_before_the_backwards(composition, choice, x):
    """A second pass must not write where the first pass' graph still reads."""
    model, plain = twins(composition, **choice)
    for m in (model, plain):
        first, second = m(x).square().sum(), m(x + 1).square().sum()
        second.backward()
        third = m(x - 1).square().sum()
        first.backward()
        third.backward()
    assert_same_gradients(model, plain)


def test_steps_with_accumulation(composition, choice, x):
    model, plain = twins(composition, **choice)
    for m in (model, plain):
        optimizer = torch.optim.SGD(m.parameters(), lr=1e-3)
        for step in range(6):
            loss = m(x + step).square().mean()  # the loss of the last step lives on meanwhile
            loss.backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_a_layer_called_twice_in_a_pass(composition, x):
    model, plain = twins(composition)
    with composing(model.blocks, LAYOUT, x, composition):
        outs = [model.blocks[1](model.blocks[0](x + i)) for i in range(2)]
    (outs[0] * outs[1]).sum().backward()
    outs = [plain.blocks[1](plain.blocks[0](x + i)) for i in range(2)]
    (outs[0] * outs[1]).sum().backward()
    for got, want in zip(model.banks.parameters(), plain.banks.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_two_losses_on_one_pass(x, monkeypatch):
    """Halves of a graph that share nothing but the composed weights."""
    monkeypatch.setattr('masa_vit.layers.composition._SMALL', 0)
    model, plain = twins('joint')
    with composing(model.blocks, LAYOUT, x):
        outs = [model.blocks[0](x + i) for i in range(2)]
    plain_outs = [plain.blocks[0](x + i) for i in range(2)]
    for pair in zip(outs, plain_outs, strict=True):
        for out in pair:
            out.square().sum().backward()
    for got, want in zip(model.banks.parameters(), plain.banks.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_gradient_of_the_input_alone(composition, x):
    model, plain = twins(composition)
    inputs = x.clone().requires_grad_()
    grads = [torch.autograd.grad(m(inputs).sum(), inputs)[0] for m in (model, plain)]
    torch.testing.assert_close(*grads)
    for m in (model, plain):
        m(x).sum().backward()
    assert_same_gradients(model, plain)


@pytest.mark.parametrize('part', ['banks', 'blocks.1.coef', 'blocks.2', ''])
def test_frozen_parts(composition, part, x):
    model, plain = twins(composition)
    for m in (model, plain):
        m.get_submodule(part).requires_grad_(False)
        inputs = x.clone().requires_grad_()
        m(inputs).square().sum().backward()
        assert inputs.grad is not None
    for got, want in zip(model.parameters(), plain.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None)
        if want.grad is not None:
            torch.testing.assert_close(got.grad, want.grad)


def test_a_parameter_changed_before_the_backward_pass_is_an_error(composition, x):
    model = Stack(composition).double()
    loss = model(x).sum()
    with torch.no_grad():
        model.banks['kv'].atoms.mul_(2)
    with pytest.raises(RuntimeError, match='changed in place'):
        loss.backward()


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_blocks_checkpointed_by_the_caller(composition, choice, use_reentrant, x):
    """Composed in the pass at first, alone when recomputed: what is saved must be the same."""
    model, plain = twins(composition, **choice)
    inputs = x.clone().requires_grad_()
    with composing(model.blocks, LAYOUT, inputs, composition):
        out = inputs
        for block in model.blocks:
            out = checkpoint(block, out, use_reentrant=use_reentrant)
    out.square().sum().backward()
    plain(x).square().sum().backward()
    assert_same_gradients(model, plain)


def test_every_other_block_checkpointed(composition, choice, x):
    """Some layers are watched while they save, others are not; all weights lie in one buffer."""
    model, plain = twins(composition, **choice)
    with composing(model.blocks, LAYOUT, x, composition):
        out = x
        for index, block in enumerate(model.blocks):
            out = checkpoint(block, out, use_reentrant=False) if index % 2 else block(out)
    out.square().sum().backward()
    plain(x).square().sum().backward()
    assert_same_gradients(model, plain)


def test_a_whole_pass_checkpointed(composition, choice, x):
    model, plain = twins(composition, **choice)
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    plain(x).square().sum().backward()
    assert_same_gradients(model, plain)


@pytest.mark.parametrize('choice', ['direct', 'mlp', 'frozen'])
def test_nothing_but_activations_is_saved(composition, choice, x):
    model = Stack(composition, **CHOICES[choice]).double()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x)
    assert saved
    assert all(t.shape[:2] == x.shape[:2] for t in saved), 'a weight would have two dimensions'


def test_torch_func(composition, x):
    model, plain = twins(composition)
    params = dict(model.named_parameters())

    def loss(params, x, m=model):
        return functional_call(m, params, (x,)).square().sum()

    got = vmap(grad(loss), in_dims=(None, 0))(params, x)
    for index, sample in enumerate(x):
        want = grad(lambda p, s: loss(p, s, plain))(params, sample)
        torch.testing.assert_close({k: v[index] for k, v in got.items()}, want)
    tangents = {k: torch.ones_like(v) for k, v in params.items()}
    out = [jvp(lambda p, m=m: loss(p, x, m), (params,), (tangents,)) for m in (model, plain)]
    torch.testing.assert_close(*out)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        torch.testing.assert_close(model(dual), plain(x))


def test_functional_call_is_differentiated_where_it_was_called(composition, x):
    """The backward pass runs when the module has its own parameters again."""
    model, plain = twins(composition)
    for m in (model, plain):
        params = {n: p.detach().mul(2).requires_grad_() for n, p in m.named_parameters()}
        functional_call(m, params, (x,)).square().sum().backward()
        m.got = {n: p.grad for n, p in params.items()}
        assert all(p.grad is None for p in m.parameters())
    torch.testing.assert_close(model.got, plain.got)


def test_the_buffer_of_a_pass_that_is_over_is_used_again(x, monkeypatch):
    monkeypatch.setattr('masa_vit.layers.composition._SMALL', 0)
    model = Stack('joint').double()
    first = model(x)
    address = buffers(first)
    first.sum().backward()
    second = model(x)
    assert buffers(second) == address, 'its backward pass ended it, though the loss is still there'
    third = model(x)
    assert not buffers(third) & address, 'a graph still needs it'
    del second
    fourth = model(x)
    assert buffers(fourth) == address, 'nobody can need it any more'


def buffers(out: torch.Tensor) -> set[int]:
    """Where the weights of a pass lie."""
    return {node.lease.buffer.data_ptr() for node in graph(out) if hasattr(node, 'lease')}


def graph(out: torch.Tensor) -> list:
    """All nodes behind a tensor."""
    nodes, left = set(), [out.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            left += [following for following, _ in node.next_functions]
    return list(nodes)
