"""Second moments on calibration images."""

from __future__ import annotations

import pytest
import timm
import torch

from masa_vit.compression.metric import Statistics, collect_statistics

SIZE = {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 2, 'num_heads': 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('vit_tiny_patch16_224', **SIZE, num_classes=5)


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32)


def test_moments_of_inputs(model, images):
    seen = []
    handle = model.blocks[1].attn.proj.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    model.eval()(images)
    handle.remove()
    rows = seen[0].flatten(0, 1).double()
    statistics = collect_statistics(model.train(), images.split(4))
    assert model.training
    assert statistics.num_images == 6
    assert not statistics.gradients
    expected = rows.T @ rows / len(rows)
    # the model computes in float32, here on batches of another size
    atol = 8 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(statistics.inputs['o'][1], expected, rtol=1e-5, atol=atol)
    assert torch.equal(statistics.inputs['q'], statistics.inputs['v'])


@pytest.mark.parametrize('num_classes', [5, 0])
def test_moments_of_gradients(model, images, num_classes):
    model.reset_classifier(num_classes)
    state = torch.get_rng_state()
    statistics = collect_statistics(model, images.split(4), gradients=True)
    again = collect_statistics(model, images.split(4), gradients=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name in 'qkvo':
        moment = statistics.gradients[name]
        assert moment.shape == (2, 32, 32)
        assert torch.equal(moment, again.gradients[name])
        assert (torch.linalg.eigvalsh(moment) > -1e-12 * moment.abs().max()).all()
    # a constant added to all keys changes no attention: their gradients sum to zero over tokens
    assert statistics.gradients['k'].abs().max() < statistics.gradients['v'].abs().max()


def test_fisher_predicts_the_change_of_the_prediction(model, images):
    """KL(p || p') is half of sum_l ||error||^2 in the Fisher metric, in the mean over small errors."""
    torch.manual_seed(1)
    model = model.double().eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.1)
        images = torch.randn(48, 3, 32, 32, dtype=torch.float64)
        before = model(images).log_softmax(1)
    statistics = collect_statistics(model, images.split(16), gradients=True)
    tokens = 48 * 17
    found, expected = [], []
    for _ in range(30):
        change = torch.randn(32, 32, dtype=torch.float64) * 0.02
        moment = change @ statistics.inputs['o'][1] @ change.T
        expected.append(float((moment * statistics.gradients['o'][1]).sum()) / 2 * tokens / 48)
        with torch.no_grad():
            model.blocks[1].attn.proj.weight += change
            after = model(images).log_softmax(1)
            model.blocks[1].attn.proj.weight -= change
        found.append(float((before.exp() * (before - after)).sum(1).mean()))
    ratio = sum(found) / sum(expected)
    assert 0.3 < ratio < 3, ratio


def test_relative_errors_count_alike_under_input(model, images):
    statistics = collect_statistics(model, [images])
    weights = {
        'q': torch.randn(2, 32, 32, dtype=torch.float64) * torch.tensor([1, 100]).view(2, 1, 1)
    }
    metrics = statistics.metrics(weights, 'input')
    torch.testing.assert_close(
        metrics['q'].energy(weights['q']), torch.ones(2, dtype=torch.float64)
    )
    assert metrics['q'].left is None


def test_singular_moments_get_a_ridge():
    moment = torch.zeros(1, 4, 4, dtype=torch.float64)
    moment[0, 0, 0] = 1.0
    metrics = Statistics({'q': moment}, {'q': moment}, 1).metrics({'q': moment}, 'fisher')
    assert torch.isfinite(metrics['q'].left).all()
    assert (metrics['q'].left[0].diagonal() > 0).all()


@pytest.mark.parametrize(
    ('batches', 'message'),
    [
        ([torch.randn(1, 3, 32, 32)], r'1 calibration images give 17 tokens, .* at least 2 images'),
        ([], r'0 calibration images give 0 tokens'),
        ([torch.randn(3, 32, 32)], r'a calibration batch is \(3, 32, 32\), expected images'),
        ([torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], r'floating'),
        (['cat.png'], r'a calibration batch is str'),
        ([torch.full((2, 3, 32, 32), float('nan'))], r'hold NaN or infinity'),
    ],
)  # fmt: skip
def test_images_that_do_not_serve(model, batches, message):
    with pytest.raises(ValueError, match=message):
        collect_statistics(model, batches)
