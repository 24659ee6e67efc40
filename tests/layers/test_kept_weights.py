"""In evaluation the composed weights are kept until something changes."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from stacks import CHOICES, LAYOUT, Stack
from torch.utils.checkpoint import checkpoint

from masa_vit.layers import composing, refresh


@pytest.fixture(params=CHOICES)
def model(request) -> Stack:
    return Stack(**CHOICES[request.param]).double().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 8, dtype=torch.float64)


def kept(model: Stack) -> list[torch.Tensor]:
    """The weights that the banks keep now."""
    workspaces = [w for bank in model.banks.values() for w in bank._workspaces.values()]
    return [weight for w in workspaces if w.kept is not None for weight in w.kept.weights]


@torch.no_grad()
def plain(model: Stack, x: torch.Tensor) -> torch.Tensor:
    return model.plain(x)


@torch.no_grad()
def evaluate(model: Stack, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    torch.testing.assert_close(out, plain(model, x))
    return out


def test_the_weights_are_those_of_the_pass_before(model, x):
    first = evaluate(model, x)
    weights = kept(model)
    assert len(weights) == len(model.layers())
    assert torch.equal(evaluate(model, x), first)
    assert all(a is b for a, b in zip(weights, kept(model), strict=True))
    with torch.inference_mode():
        assert torch.equal(model(x), first)
    assert all(a is b for a, b in zip(weights, kept(model), strict=True))


def test_weights_kept_under_inference_mode_serve_everywhere(model, x):
    with torch.inference_mode():
        model(x)
    inputs = x.clone().requires_grad_()
    model.requires_grad_(False)
    model(inputs).sum().backward()
    assert inputs.grad is not None


CHANGES = {
    'atoms': lambda m: m.banks['q'].atoms.mul_(2),
    'coefficients': lambda m: next(m.blocks[0].coef.parameters()).mul_(2),
    'sgd': lambda m: step(m, torch.optim.SGD(m.parameters(), lr=0.1)),
    'adamw': lambda m: step(m, torch.optim.AdamW(m.parameters(), lr=0.1)),
    'adamw, foreach': lambda m: step(m, torch.optim.AdamW(m.parameters(), lr=0.1, foreach=True)),
    'load': lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    'assign': lambda m: m.load_state_dict(
        {k: v + 1 for k, v in m.state_dict().items()}, assign=True
    ),
    'data replaced': lambda m: setattr(m.banks['q'].atoms, 'data', m.banks['q'].atoms.data * 2),
    'ema': lambda m: torch._foreach_lerp_(
        list(m.parameters()), [torch.zeros_like(p) for p in m.parameters()], 0.5
    ),
}


def step(model: Stack, optimizer: torch.optim.Optimizer) -> None:
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()


@pytest.mark.parametrize('change', CHANGES)
def test_changes_are_seen(change, x):
    model = Stack().double().eval()
    before = evaluate(model, x)
    with torch.no_grad():
        CHANGES[change](model)
    assert not torch.allclose(evaluate(model, x), before)


def test_changes_of_other_parameters_are_seen(x):
    mixed = Stack(**CHOICES['mixed']).double().eval()
    before = evaluate(mixed, x)
    with torch.no_grad():
        mixed.blocks[0].qkv.dense_k.add_(1)
    assert not torch.equal(evaluate(mixed, x), before)
    mlp = Stack(**CHOICES['mlp']).double().eval()
    before = evaluate(mlp, x)
    with torch.no_grad():
        mlp.generator.fc2.bias.add_(1)
    assert not torch.equal(evaluate(mlp, x), before)
    frozen = Stack(**CHOICES['frozen']).double().eval()
    before = evaluate(frozen, x)
    frozen.blocks[0].coef.q.mul_(3)
    assert not torch.equal(evaluate(frozen, x), before)


@pytest.mark.parametrize(
    'free',
    [
        lambda m: m.train(),
        lambda m: m.eval(),
        lambda m: m.float().double(),
        lambda m: refresh(m),
        lambda m: m.banks['q'].refresh(),
    ],
)
def test_memory_is_freed(free, x):
    model = Stack().double().eval()
    evaluate(model, x)
    count = len(kept(model))
    free(model)
    assert len(kept(model)) < count
    evaluate(model.eval(), x)


def test_what_cannot_be_seen_needs_refresh(x):
    model = Stack().double().eval()
    before = evaluate(model, x)
    model.banks['q'].atoms.data.mul_(2)
    with torch.no_grad():
        assert torch.equal(model(x), before), 'if this is seen now, tell the docs'
    refresh(model)
    assert not torch.allclose(evaluate(model, x), before)

    step(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))
    refresh(model)
    assert not torch.allclose(evaluate(model, x), before)


def test_a_training_loop_needs_no_refresh(x):
    model = Stack().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model.train()
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        evaluate(model, x)


def test_a_training_step_in_evaluation_mode(x):
    """A forward pass with gradients announces the step, though that of a fused optimizer is not seen."""
    model = Stack().double().eval()
    before = evaluate(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(evaluate(model, x), before)


def test_recomputed_frozen_blocks(x):
    """What is saved in the pass and when a block is recomputed alone must be the same."""
    model = Stack().double().eval().requires_grad_(False)
    evaluate(model, x)
    inputs = x.clone().requires_grad_()
    with composing(model.blocks, LAYOUT, inputs):
        out = inputs
        for block in model.blocks:
            out = checkpoint(block, out, use_reentrant=False)
    out.square().sum().backward()
    expected = x.clone().requires_grad_()
    model.plain(expected).square().sum().backward()
    torch.testing.assert_close(inputs.grad, expected.grad)


def test_a_model_is_freed_when_it_is_deleted(x):
    model = Stack().double().eval()
    evaluate(model, x)
    model.train()(x).sum().backward()
    atoms = weakref.ref(model.banks['q'].atoms)
    gc.disable()  # which would find a cycle
    try:
        del model
        assert atoms() is None
    finally:
        gc.enable()


def test_gradients_in_evaluation_mode(model, x):
    evaluate(model, x)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_is_kept_where_it_is_not_wanted(x):
    for composition in ('joint', 'layerwise'):
        model = Stack(composition).double().eval()
        evaluate(model, x)
        assert not kept(model)
    model = Stack().double()
    evaluate(model, x)
    assert not kept(model)


def test_parameters_made_under_inference_mode(x):
    with torch.inference_mode():
        model = Stack().double().eval()
        first = model(x)
        model.banks['q'].atoms.mul_(2)
        assert not torch.equal(model(x), first)
        assert not kept(model)


def test_dtypes_have_weights_of_their_own(model, x):
    model, x = model.float(), x.float()
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(model(x), model.plain(x), atol=0.05, rtol=0.05)
    assert {w.dtype for w in kept(model)} == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.plain(x), atol=1e-4, rtol=1e-5)
    assert {w.dtype for w in kept(model)} == {torch.float32}


def test_copies_and_files_hold_none(model, x):
    evaluate(model, x)
    names = set(model.state_dict())
    first = next(iter(model.banks))
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.copy(model.banks[first]),
    ):
        assert not any(getattr(m, '_workspaces', None) for m in other.modules())
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.banks[first].atoms.zero_()
    torch.testing.assert_close(evaluate(model, x), plain(model, x))
    evaluate(clone, x)
    assert set(model.state_dict()) == names
    sizes = []
    for m in (model, copy.deepcopy(model)):
        file = io.BytesIO()
        torch.save(m, file)
        sizes.append(file.tell())
    assert abs(sizes[0] - sizes[1]) < 1000


def test_threads_share_a_model(x):
    model = Stack().double().eval()
    expected = plain(model, x)
    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda _: torch.no_grad()(model)(x), range(64)))
    for out in outs:
        torch.testing.assert_close(out, expected)


def test_a_pruned_stack(x):
    model = Stack().double().eval()
    evaluate(model, x)
    del model.blocks[2:]
    evaluate(model, x)
    assert len(kept(model)) == len(model.layers())
