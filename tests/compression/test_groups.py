from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
import torch

from masa_vit.compression.groups import (
    GROUPINGS,
    cluster_groups,
    find_groups,
    kl_groups,
    logit_lens,
    optimal_groups,
    uniform_groups,
)


def _grams(layers: int, count: int = 2, size: int = 30) -> torch.Tensor:
    """Gram matrices of random weights with some structure."""
    rows = [torch.randn(layers, size).cumsum(0).double() for _ in range(count)]
    return torch.stack([row @ row.T for row in rows])


def _loss(grams, groups, atoms) -> float:
    lost = 0.0
    for gram, (group, count) in itertools.product(grams, zip(groups, atoms, strict=True)):
        values = torch.linalg.eigvalsh(gram[group][:, group]).flip(0)
        lost += float(values[count:].sum())
    return lost


def _all_runs(layers: int, num_groups: int) -> list[list[list[int]]]:
    return [
        [list(range(a, b)) for a, b in itertools.pairwise((0, *cuts, layers))]
        for cuts in itertools.combinations(range(1, layers), num_groups - 1)
    ]


@pytest.mark.parametrize(
    ('layers', 'count', 'sizes'),
    [(12, 3, [4, 4, 4]), (12, 5, [3, 3, 2, 2, 2]), (4, 4, [1] * 4), (7, 1, [7])],
)
def test_uniform_groups(layers, count, sizes):
    groups = uniform_groups(layers, count)
    assert [len(group) for group in groups] == sizes
    assert list(itertools.chain(*groups)) == list(range(layers))


def test_kl_groups_cut_at_the_largest_drifts():
    logits = torch.tensor([0.0, 0.1, 2.0, 2.1, 2.3, 9.0])
    probs = torch.stack([logits, -logits], 1).softmax(1)
    assert kl_groups(probs, 1) == [[0, 1, 2, 3, 4, 5]]
    assert kl_groups(probs, 2) == [[0, 1], [2, 3, 4, 5]]
    assert kl_groups(probs, 6) == [[0], [1], [2], [3], [4], [5]]


def test_kl_groups_where_a_class_gets_no_chance_and_drifts_are_equal():
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert kl_groups(probs, 2) == [[0, 1], [2, 3]]
    assert kl_groups(torch.full((4, 2), 0.5), 3) == [[0], [1], [2, 3]]


@pytest.mark.parametrize('num_atoms', [1, 2, 4])
@pytest.mark.parametrize('num_groups', [1, 2, 3, 7])
def test_optimal_groups_are_those_of_brute_force(num_groups, num_atoms):
    grams = _grams(7)
    groups = optimal_groups(grams, num_groups, num_atoms)
    best = min(_loss(grams, g, [num_atoms] * num_groups) for g in _all_runs(7, num_groups))
    assert _loss(grams, groups, [num_atoms] * num_groups) == pytest.approx(best, abs=1e-9)
    assert groups in _all_runs(7, num_groups)


def test_groups_never_beat_one_dictionary_of_as_many_atoms():
    grams = _grams(8)
    one = _loss(grams, [list(range(8))], [4])
    for num_groups in (2, 4):
        number = 4 // num_groups
        groups = optimal_groups(grams, num_groups, number)
        assert _loss(grams, groups, [number] * num_groups) >= one


def test_more_groups_than_layers(small):
    weights = {'q': [torch.eye(2)] * 4}
    for how in GROUPINGS:
        with pytest.raises(ValueError, match='num_groups=5: expected 1 to 4'):
            find_groups(how, 5, torch.nn.Linear(2, 2), weights, 1)


def _families() -> torch.Tensor:
    """Layers 0, 3, 4 are alike but for sign and scale, and so are 1, 2, 5."""
    family = torch.tensor([0, 1, 1, 0, 0, 1])
    rows = torch.randn(2, 50)[family] + 0.5 * torch.randn(6, 50)
    rows *= torch.tensor([1.0, -1, 2, -3, 0.1, 1])[:, None]
    return (rows @ rows.T).double()[None]


@pytest.mark.parametrize('method', ['spectral', 'hierarchical'])
def test_clusters_are_found_wherever_they_are_and_draw_nothing(method):
    grams = _families()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    groups = cluster_groups(grams, 2, method)
    assert groups == [[0, 3, 4], [1, 2, 5]]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    np.random.seed(123)
    assert cluster_groups(grams, 2, method) == groups
    assert cluster_groups(grams, 1, method) == [[0, 1, 2, 3, 4, 5]]
    assert cluster_groups(grams, 6, method) == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize('method', ['spectral', 'hierarchical'])
@pytest.mark.parametrize('num_groups', [2, 3, 5])
def test_clusters_of_layers_with_little_in_common(method, num_groups):
    rows = torch.randn(6, 4000)
    groups = cluster_groups((rows @ rows.T)[None], num_groups, method)
    assert len(groups) == num_groups
    from masa_vit.layers import check_groups

    assert check_groups(groups, 6) == groups


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('sklearn'):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ImportError, match=r'pip install "masa-vit\[train\]"'):
        cluster_groups(_families(), 2, 'spectral')


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        {'class_token': False, 'global_pool': 'avg', 'reg_tokens': 2},
        {'global_pool': 'map', 'init_values': 1e-2, 'drop_path_rate': 0.5},
    ],
)
@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_tiny_masa_s2'])
def test_logit_lens_is_what_the_model_cut_short_says(small, name, kwargs):
    model = small(name, **kwargs).train()
    model.head.eval()
    torch.nn.init.normal_(model.head.weight)
    batches = [torch.randn(3, 3, 32, 32), torch.randn(1, 3, 32, 32)]
    found = logit_lens(model, batches)
    assert found.shape == (4, 5)
    assert found.dtype == torch.float64
    assert model.training
    assert model.blocks[0].training
    assert not model.head.training
    assert not model.blocks[0]._forward_hooks
    model.eval()
    for depth in (4, 2):
        model.blocks = model.blocks[:depth]
        with torch.no_grad():
            expected = model(torch.cat(batches)).softmax(-1).mean(0)
        torch.testing.assert_close(found[depth - 1].float(), expected, rtol=1e-4, atol=1e-6)


def test_logit_lens_that_cannot_be(small):
    images = [torch.randn(1, 3, 32, 32)]
    dense = 'vit_tiny_patch16_224'
    with pytest.raises(ValueError, match='needs a model with a head'):
        logit_lens(small(dense, num_classes=0), images)
    with pytest.raises(ValueError, match='no calibration images'):
        logit_lens(small(dense), [])
    model = small(dense)
    torch.nn.init.constant_(model.blocks[2].mlp.fc2.bias, float('nan'))
    with pytest.raises(ValueError, match=r'blocks \[2, 3\] give values that are not finite'):
        logit_lens(model, images)
