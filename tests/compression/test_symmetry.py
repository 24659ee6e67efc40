from __future__ import annotations

import pytest
import timm
import torch

from masa_vit.compression.alignment import align
from masa_vit.compression.source_weights import stacked_weights
from masa_vit.compression.symmetry import allowed, apply_alignment

DENSE = 'vit_tiny_patch16_224'
MODES = ['permutation', 'rotation', 'invertible']
VARIANTS = {
    'plain': {},
    'no biases': {'qkv_bias': False, 'proj_bias': False},
    'qk norm': {'qk_norm': True},
    'layer scale, registers': {'init_values': 0.5, 'reg_tokens': 2, 'no_embed_class': True},
    'norm before proj': {'scale_attn_norm': True},
    'no class token': {'class_token': False, 'global_pool': 'avg'},
    'both norms': {'scale_attn_norm': True, 'qk_norm': True, 'global_pool': 'map'},
}


@pytest.fixture
def dense(small):
    """A model whose heads, biases and norms all matter."""

    def create(**kwargs):
        model = small(DENSE, num_heads=4, **kwargs).eval()
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn_like(param), alpha=0.1)
        return model

    return create


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kwargs', VARIANTS.values(), ids=VARIANTS)
def test_the_output_is_unchanged(dense, images, kwargs, mode):
    model = dense(**kwargs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    can = allowed(model)
    found = align(
        stacked_weights(model),
        can.num_heads,
        2,
        mode=mode,
        rotate_qk=can.rotate_qk,
        rotate_vo=can.rotate_vo,
    )
    aligned = apply_alignment(model, found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for name, weight in stacked_weights(aligned).items():
        assert not torch.allclose(weight, stacked_weights(model)[name], atol=1e-3)
    with torch.no_grad():
        expected, output = model(images), aligned(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert aligned.training is False


def test_the_gate_goes_along(dense, images):
    model = dense()
    for block in model.blocks:
        plain = block.attn
        block.attn = timm.layers.Attention(32, 4, qkv_bias=True, gated=True).eval()
        block.attn.load_state_dict(plain.state_dict(), strict=False)
    can = allowed(model)
    assert not can.rotate_vo
    assert can.rotate_qk
    found = align(stacked_weights(model), 4, 2, rotate_vo=False)
    assert (found.heads != torch.arange(4)).any()
    with torch.no_grad():
        expected, output = model(images), apply_alignment(model, found)(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_what_is_allowed(dense):
    can = allowed(dense())
    assert can == (4, True, True, ())
    can = allowed(dense(qk_norm=True, scale_attn_norm=True))
    assert can[:3] == (4, False, False)
    assert len(can.reasons) == 2


@pytest.mark.parametrize(
    ('kwargs', 'name'), [({'qk_norm': True}, 'qk'), ({'scale_attn_norm': True}, 'vo')]
)
def test_what_is_not_allowed_is_not_done(dense, kwargs, name):
    model = dense(**kwargs)
    found = align(stacked_weights(model), 4, 2)
    with pytest.raises(ValueError, match=rf'change what the model computes.*rotate_{name}=False'):
        apply_alignment(model, found)


def test_an_alignment_of_another_model(dense):
    found = align(stacked_weights(dense()), 4, 2)
    with pytest.raises(ValueError, match=r'for \(4, 4, 8\) .* the model has \(3, 4, 8\)'):
        apply_alignment(dense(depth=3), found)


def test_attention_that_cannot_be_aligned(small):
    for model, got in (
        (small(DENSE, attn_layer='diff'), 'DiffAttention'),
        (small(), 'SharedLinear'),
        (small(DENSE, block_fn=timm.models.vision_transformer.ParallelScalingBlock), 'NoneType'),
    ):
        with pytest.raises(ValueError, match=f'not possible for blocks.0: .* got .*{got}'):
            allowed(model)
    with pytest.raises(ValueError, match='Linear has no blocks'):
        allowed(torch.nn.Linear(2, 2))
    model = small(DENSE)
    model.blocks[1].attn = timm.layers.Attention(32, 4, qkv_bias=True)
    with pytest.raises(ValueError, match=r'blocks \[1\] differ from blocks.0'):
        allowed(model)


def test_half_precision_stays_half(dense):
    model = dense().to(torch.bfloat16)
    found = align(stacked_weights(model), 4, 2, max_iters=2)
    aligned = apply_alignment(model, found)
    assert {param.dtype for param in aligned.parameters()} == {torch.bfloat16}
    assert all(param.requires_grad for param in aligned.parameters())
