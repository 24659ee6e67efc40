from __future__ import annotations

import pytest
import torch
from torch import nn

import masa_vit
from masa_vit.inspection.cka import layer_cka, linear_cka


def rotation(dim: int) -> torch.Tensor:
    return nn.init.orthogonal_(torch.empty(dim, dim))


@pytest.mark.parametrize('n', [12, 200])  # by examples, by features
def test_invariances(n):
    x, y = torch.randn(n, 20), torch.randn(n, 7)
    y[:, :5] += 2 * x[:, :5]
    value = linear_cka(x, y)
    assert 0.05 < value < 0.95
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(y, x) == pytest.approx(value)
    assert linear_cka(x @ rotation(20) * 3 + 5, y @ rotation(7) * -0.1) == pytest.approx(
        value, rel=1e-4
    )
    stretched = x * torch.linspace(0.1, 5, 20)
    assert linear_cka(stretched, y) != pytest.approx(value, rel=0.01)


@pytest.mark.parametrize('n', [5, 40])
def test_definition(n):
    """By the unbiased estimate of HSIC (Song et al. 2012, eq. 5)."""
    x, y = torch.randn(n, 20).double(), torch.randn(n, 7).double()
    ones = torch.ones(n).double()
    k, m = ((z @ z.T).fill_diagonal_(0) for z in (x, y))

    def hsic(a, b):
        total = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        inner = (a @ b).trace() + total - 2 / (n - 2) * (ones @ a @ b @ ones)
        return inner / (n * (n - 3))

    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert linear_cka(x, y) == pytest.approx(expected.item())


@pytest.mark.parametrize('shape', [(4000, 8), (128, 768)])
def test_independent_features_are_unlike_at_any_width(shape):
    assert abs(linear_cka(torch.randn(shape), torch.randn(shape))) < 0.03


@pytest.mark.parametrize('n', [4, 30])
def test_constant_features_are_like_nothing(n):
    assert linear_cka(torch.ones(n, 4), torch.randn(n, 5)) == 0


@pytest.mark.parametrize(
    ('x', 'y', 'what'),
    [
        ((4, 3), (5, 3), r'\[4, 5\] examples'),
        ((3, 3), (3, 3), 'at least 4'),
        ((4, 3, 2), (4, 3), r'\(4, 3, 2\), expected \(examples, features\)'),
    ],
)
def test_bad_representations(x, y, what):
    with pytest.raises(ValueError, match=what):
        linear_cka(torch.randn(x), torch.randn(y))


def strengthen(model):
    """Let the layers differ: at the start all blocks add little."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith('.atoms') or ('blocks' in name and param.dim() > 1):
                param.mul_(10)
    return model


def outputs(model, images):
    """Mean over patches of each block's output."""
    seen = []
    hooks = [
        block.register_forward_hook(
            lambda _, __, out: seen.append(out[:, model.num_prefix_tokens :].mean(1))
        )
        for block in model.blocks
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize('n', [10, 40])  # fewer and more than features
@pytest.mark.parametrize('kwargs', [{}, {'reg_tokens': 2}, {'name': 'vit_tiny_patch16_224'}])
def test_layers_are_compared_by_the_mean_over_patches(small, n, kwargs):
    model, images = strengthen(small(drop_path_rate=0.5, **kwargs)), torch.randn(n, 3, 32, 32)
    found = layer_cka(model, iter([images[:3], (images[3:], torch.zeros(n - 3))]))
    assert model.training
    features = outputs(model, images)
    expected = torch.tensor([[linear_cka(x, y) for y in features] for x in features])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.diagonal(), torch.ones(4))
    assert found.min() < 0.95


@pytest.mark.parametrize('n', [10, 40])
def test_against_another_model(small, n):
    model, images = small(), torch.randn(n, 3, 32, 32)
    other = small(depth=3, embed_dim=24, class_token=False, global_pool='avg')
    found = layer_cka(model, iter([images]), other)
    assert found.shape == (4, 3)
    expected = linear_cka(outputs(model, images)[3], outputs(other, images)[1])
    assert found[3, 1].item() == pytest.approx(expected, abs=1e-5)
    folded = layer_cka(model, [images], masa_vit.fold(model))
    torch.testing.assert_close(folded, layer_cka(model, [images]))


def test_no_transformer_and_no_images(small, images):
    with pytest.raises(TypeError, match='Linear is not built like the VisionTransformer'):
        layer_cka(nn.Linear(2, 2), [images])
    with pytest.raises(ValueError, match='the batches are empty'):
        layer_cka(small(), [])
    with pytest.raises(ValueError, match='at least 4'):
        layer_cka(small(), [images[:1]])
