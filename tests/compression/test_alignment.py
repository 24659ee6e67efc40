from __future__ import annotations

import pytest
import timm
import torch

from masa_vit.compression.alignment import (
    Alignment,
    Allowed,
    align,
    allowed,
    apply_alignment,
    gaussian_like,
)
from masa_vit.compression.source_weights import stacked_weights

DENSE = 'vit_tiny_patch16_224'
FREE, FIXED = Allowed(4, True, True, ()), Allowed(4, False, False, ())


def _weights(depth=4, dim=24, wide=32, out=20) -> dict[str, torch.Tensor]:
    weights = {name: torch.randn(depth, wide, dim).double() for name in 'qkv'}
    return {**weights, 'o': torch.randn(depth, out, wide).double()}


def _align(weights, num_atoms, groups=None, can=FREE, **kwargs) -> Alignment:
    groups = groups or [[*range(len(weights['q']))]]
    return align(weights, can, [num_atoms] * len(groups), groups, **kwargs)


def _captured(weights, num_atoms, letters='qkvo') -> float:
    kept = total = 0.0
    for name in letters:
        values = torch.linalg.svdvals(weights[name].double().flatten(1)).square()
        kept, total = kept + values[:num_atoms].sum(), total + values.sum()
    return float(kept / total)


def _products(weights, num_heads) -> torch.Tensor:
    """The function of the heads, whatever their order: sum of (Q_h^T K_h) x (O_h V_h), some entries."""
    q, k, v = (weights[name].double().unflatten(1, (num_heads, -1)) for name in 'qkv')
    o = weights['o'].double().unflatten(2, (num_heads, -1))
    logits = torch.einsum('lhcd,lhce->lhde', q, k)
    outputs = torch.einsum('lohc,lhcd->lhod', o, v)
    return torch.einsum('lhde,lhof->ldeof', logits[..., :5, :6], outputs[..., :7, :4])


def _copies(rotated: bool, depth=4, num_heads=4) -> dict[str, torch.Tensor]:
    """Layers that are the same but for the order (and rotation) of their heads."""
    weights = {name: value[:1].repeat(depth, 1, 1) for name, value in _weights().items()}
    heads = torch.stack([torch.randperm(num_heads) for _ in range(depth)])
    qk = vo = torch.eye(8).double().expand(depth, num_heads, 8, 8)
    if rotated:
        qk, vo = torch.linalg.qr(torch.randn(2, depth, num_heads, 8, 8).double())[0]
    return Alignment(heads, qk, vo).transform(weights)


@pytest.mark.parametrize('can', [FREE, FIXED])
def test_the_products_of_the_heads_are_unchanged(can):
    weights = _weights()
    moved = _align(weights, 2, can=can).transform(weights)
    torch.testing.assert_close(_products(moved, 4), _products(weights, 4))
    assert {n: v.shape for n, v in moved.items()} == {n: v.shape for n, v in weights.items()}


@pytest.mark.parametrize('groups', [None, [[0, 2, 5], [1, 3, 4, 6]]])
def test_energy_is_that_of_the_aligned_weights_and_never_falls(groups):
    weights = _weights(depth=7)
    found = _align(weights, 2, groups)
    moved = found.transform(weights)
    for energy, current in ((found.energy[0], weights), (found.energy[-1], moved)):
        kept = 0.0
        for group in groups or [[*range(7)]]:
            part = {name: value[group] for name, value in current.items()}
            kept += _captured(part, 2) * sum(float(v.square().sum()) for v in part.values())
        total = sum(float(value.square().sum()) for value in current.values())
        assert energy == pytest.approx(kept / total, abs=1e-9)
    rises = torch.tensor(found.energy[1:], dtype=torch.float64).diff()
    assert (rises >= -1e-12).all()
    assert found.energy[-1] > found.energy[0] + 0.05


@pytest.mark.parametrize(('rotated', 'can'), [(True, FREE), (False, FIXED)])
def test_disguised_copies_are_found(rotated, can):
    weights = _copies(rotated)
    found = _align(weights, 1, can=can)
    assert found.energy[0] < 0.9
    assert found.energy[-1] == pytest.approx(1)
    assert _captured(found.transform(weights), 1) == pytest.approx(1)


def test_weights_with_nothing_to_gain_lose_nothing():
    """Two kinds of layers, two atoms: moving all to one layer would lose energy."""
    two = {name: value[:2] for name, value in _weights().items()}
    mix = torch.randn(6, 2).double()
    weights = {name: torch.einsum('ls,sij->lij', mix, value) for name, value in two.items()}
    assert _align(weights, 2).energy[-1] == pytest.approx(1)


def test_more_freedom_captures_more():
    weights = _weights(depth=6)
    partly = Allowed(4, False, True, ())
    energies = [_align(weights, 2, can=can).energy[-1] for can in (FIXED, partly, FREE)]
    assert energies == sorted(energies)
    assert energies[-1] - energies[0] > 0.05
    found = _align(weights, 2, can=partly)
    eye = torch.eye(8).double().expand(6, 4, 8, 8)
    assert torch.equal(found.qk, eye)
    assert not torch.allclose(found.vo, eye, atol=0.1)


def test_only_the_projections_that_share_count():
    weights = _weights(depth=6)
    moved = _align(weights, 2, projections='qk').transform(weights)
    assert _captured(moved, 2, 'qk') > _captured(_align(weights, 2).transform(weights), 2, 'qk')
    torch.testing.assert_close(_products(moved, 4), _products(weights, 4))


def test_as_many_atoms_as_layers_leave_the_heads_where_they_are():
    found = _align(_weights(), 5)
    assert torch.equal(found.heads, torch.arange(4).repeat(4, 1))
    assert torch.equal(found.qk, torch.eye(8).double().expand(4, 4, 8, 8))
    assert found.energy[-1] == pytest.approx(1)


def test_gaussian_controls_keep_shapes_and_norms():
    weights = {k: v * torch.tensor([1.0, 2, 3, 9])[:, None, None] for k, v in _copies(True).items()}
    state = torch.get_rng_state()
    noise = gaussian_like(weights)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in weights.items():
        torch.testing.assert_close(noise[name].norm(dim=(1, 2)), value.norm(dim=(1, 2)))
    assert torch.equal(noise['q'], gaussian_like(weights)['q'])
    assert not torch.equal(noise['q'], gaussian_like(weights, seed=1)['q'])
    energy = _align(noise, 1).energy
    assert energy[0] == pytest.approx(81 / 95, abs=0.02)  # the norms alone
    assert energy[0] < energy[-1] < _align(weights, 1).energy[-1]


# --- models ---

VARIANTS = {
    'plain': {},
    'no biases': {'qkv_bias': False, 'proj_bias': False},
    'qk norm': {'qk_norm': True},
    'layer scale, registers': {'init_values': 0.5, 'reg_tokens': 2, 'no_embed_class': True},
    'norm before proj': {'scale_attn_norm': True},
    'both norms': {'scale_attn_norm': True, 'qk_norm': True, 'global_pool': 'map'},
}


@pytest.fixture
def noisy_dense(small):
    """A model whose heads, biases and norms all matter."""

    def create(**kwargs):
        model = small(DENSE, num_heads=4, **kwargs).eval()
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn_like(param), alpha=0.1)
        return model

    return create


@pytest.mark.parametrize('kwargs', VARIANTS.values(), ids=VARIANTS)
def test_the_output_is_unchanged(noisy_dense, images, kwargs):
    model = noisy_dense(**kwargs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    aligned = apply_alignment(model, _align(stacked_weights(model), 2, can=allowed(model)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for name, weight in stacked_weights(aligned).items():
        assert not torch.allclose(weight, stacked_weights(model)[name], atol=1e-3)
    with torch.no_grad():
        expected, output = model(images), aligned(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert aligned.training is False


def test_the_gate_is_moved_too(noisy_dense, images):
    model = noisy_dense()
    for block in model.blocks:
        plain = block.attn
        block.attn = timm.layers.Attention(32, 4, qkv_bias=True, gated=True).eval()
        block.attn.load_state_dict(plain.state_dict(), strict=False)
    can = allowed(model)
    assert (can.rotate_qk, can.rotate_vo) == (True, False)
    found = _align(stacked_weights(model), 2, can=can)
    assert (found.heads != torch.arange(4)).any()
    with torch.no_grad():
        expected, output = model(images), apply_alignment(model, found)(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_rotations_allowed_by_a_model(noisy_dense):
    assert allowed(noisy_dense()) == (4, True, True, ())
    can = allowed(noisy_dense(qk_norm=True, scale_attn_norm=True))
    assert can[:3] == (4, False, False)
    assert len(can.reasons) == 2


def test_attention_that_cannot_be_aligned(small):
    for model, got in (
        (small(DENSE, attn_layer='diff'), 'DiffAttention'),
        (small(), 'SharedLinear'),
        (small(DENSE, block_fn=timm.models.vision_transformer.ParallelScalingBlock), 'NoneType'),
    ):
        with pytest.raises(ValueError, match=f'blocks.0 cannot be aligned: .* got .*{got}'):
            allowed(model)
    model = small(DENSE)
    model.blocks[1].attn = timm.layers.Attention(32, 4, qkv_bias=True)
    with pytest.raises(ValueError, match=r'blocks \[1\] differ from 0'):
        allowed(model)


def test_half_precision_stays_half(noisy_dense):
    model = noisy_dense().to(torch.bfloat16)
    aligned = apply_alignment(model, _align(stacked_weights(model), 2, max_iters=2))
    assert {param.dtype for param in aligned.parameters()} == {torch.bfloat16}
    assert all(param.requires_grad for param in aligned.parameters())
