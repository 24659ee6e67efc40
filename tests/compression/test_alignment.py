from __future__ import annotations

import pytest
import torch

from masa_vit.compression.alignment import Alignment, align, gaussian_control

MODES = ['permutation', 'rotation', 'invertible']


def _weights(depth=4, dim=24, wide=32, out=20) -> dict[str, torch.Tensor]:
    weights = {name: torch.randn(depth, wide, dim).double() for name in 'qkv'}
    return {**weights, 'o': torch.randn(depth, out, wide).double()}


def _captured(weights, num_atoms, letters='qkvo') -> float:
    kept = total = 0.0
    for name in letters:
        values = torch.linalg.svdvals(weights[name].double().flatten(1)).square()
        kept, total = kept + values[:num_atoms].sum(), total + values.sum()
    return float(kept / total)


def _products(weights, num_heads) -> torch.Tensor:
    """What tells heads apart, their order aside: sum of (Q_h^T K_h) x (O_h V_h), a few entries."""
    q, k, v = (weights[name].double().unflatten(1, (num_heads, -1)) for name in 'qkv')
    o = weights['o'].double().unflatten(2, (num_heads, -1))
    logits = torch.einsum('lhcd,lhce->lhde', q, k)
    outputs = torch.einsum('lohc,lhcd->lhod', o, v)
    return torch.einsum('lhde,lhof->ldeof', logits[..., :5, :6], outputs[..., :7, :4])


def _disguised(depth=4, num_heads=4) -> dict[str, torch.Tensor]:
    """Layers that are the same but for the order and rotation of their heads."""
    one = {name: value[:1] for name, value in _weights().items()}
    weights = {name: value.repeat(depth, 1, 1) for name, value in one.items()}
    heads = torch.stack([torch.randperm(num_heads) for _ in range(depth)])
    qk, vo = torch.linalg.qr(torch.randn(2, depth, num_heads, 8, 8).double())[0]
    return Alignment(heads, qk, vo).transform(weights)


@pytest.mark.parametrize('mode', MODES)
def test_what_attention_knows_of_the_weights_is_unchanged(mode):
    weights = _weights()
    moved = align(weights, 4, 2, mode=mode).transform(weights)
    torch.testing.assert_close(_products(moved, 4), _products(weights, 4))
    assert {n: v.shape for n, v in moved.items()} == {n: v.shape for n, v in weights.items()}


@pytest.mark.parametrize('groups', [None, [[0, 2, 5], [1, 3, 4, 6]]])
@pytest.mark.parametrize('mode', MODES)
def test_energy_is_that_of_the_aligned_weights_and_never_falls(mode, groups):
    weights = _weights(depth=7)
    found = align(weights, 4, 2, groups=groups, mode=mode)
    moved = found.transform(weights)
    for energy, current in ((found.energy[0], weights), (found.energy[-1], moved)):
        parts = [
            {name: value[group] for name, value in current.items()}
            for group in groups or [list(range(7))]
        ]
        total = sum(float(value.square().sum()) for value in current.values())
        kept = sum(
            _captured(part, 2) * sum(float(v.square().sum()) for v in part.values())
            for part in parts
        )
        assert energy == pytest.approx(kept / total, abs=1e-9)
    rises = torch.tensor(found.energy[1:], dtype=torch.float64).diff()
    assert (rises >= -1e-12).all()
    if mode == 'permutation':  # four heads leave little to gain
        assert found.energy[-1] >= found.energy[0]
    else:
        assert len(rises) >= 3
        assert found.energy[-1] > found.energy[0] + 0.05


def test_disguised_copies_are_found_out():
    weights = _disguised()
    assert _captured(weights, 1) < 0.6
    found = align(weights, 4, 1)
    assert found.energy[-1] == pytest.approx(1)
    assert _captured(found.transform(weights), 1) == pytest.approx(1)


def test_permuted_copies_are_found_out():
    copies = {name: value[:1].repeat(4, 1, 1) for name, value in _weights().items()}
    eye = torch.eye(8).double().expand(4, 4, 8, 8)
    heads = torch.stack([torch.randperm(4) for _ in range(4)])
    weights = Alignment(heads, eye, eye).transform(copies)
    found = align(weights, 4, 1, mode='permutation')
    assert found.energy[0] < 0.9
    assert found.energy[-1] == pytest.approx(1)
    assert torch.equal(found.qk, eye)
    assert torch.equal(found.vo, eye)


def test_weights_with_nothing_to_gain_lose_nothing():
    """Two kinds of layers, two atoms: moving all to one layer would break what is there."""
    two = {name: value[:2] for name, value in _weights().items()}
    mix = torch.randn(6, 2).double()
    weights = {name: torch.einsum('ls,sij->lij', mix, value) for name, value in two.items()}
    assert align(weights, 4, 2).energy[-1] == pytest.approx(1)


def test_balanced_copies_are_found_out():
    copies = {name: value[:1].repeat(3, 1, 1) for name, value in _weights().items()}
    maps = torch.eye(8) + 0.15 * torch.randn(2, 3, 4, 8, 8)
    heads = torch.stack([torch.randperm(4) for _ in range(3)])
    weights = Alignment(heads, *maps.double()).transform(copies)
    assert align(weights, 4, 1).energy[-1] < 0.99
    found = align(weights, 4, 1, mode='invertible')
    assert found.energy[-1] == pytest.approx(1, abs=1e-3)  # the ridge
    q, k = (found.transform(weights)[name].unflatten(1, (4, 8)) for name in 'qk')
    torch.testing.assert_close(q @ q.mT, k @ k.mT, rtol=0.01, atol=0.05)


def test_more_freedom_captures_more():
    weights = _weights(depth=6)
    energies = [align(weights, 4, 2, mode='permutation').energy[-1]]
    for options in ({'rotate_qk': False}, {}):
        energies.append(align(weights, 4, 2, **options).energy[-1])
    assert energies == sorted(energies)
    assert energies[-1] - energies[0] > 0.05
    found = align(weights, 4, 2, rotate_qk=False)
    eye = torch.eye(8).double().expand(6, 4, 8, 8)
    assert torch.equal(found.qk, eye)
    assert not torch.allclose(found.vo, eye, atol=0.1)


def test_only_the_projections_that_share_count():
    weights = _weights(depth=6)
    found = align(weights, 4, 2, projections='qk')
    moved = found.transform(weights)
    assert found.energy[-1] == pytest.approx(_captured(moved, 2, 'qk'))
    assert _captured(moved, 2, 'qk') > _captured(align(weights, 4, 2).transform(weights), 2, 'qk')
    torch.testing.assert_close(_products(moved, 4), _products(weights, 4))


def test_atoms_of_projections_and_groups_of_their_own():
    weights = _weights(depth=6)
    groups = [[0, 1], [2, 3, 4, 5]]
    found = align(weights, 4, {'q': [2, 3], 'k': 1, 'v': [1, 4], 'o': 2}, groups=groups)
    moved = found.transform(weights)
    kept = 0.0
    for name, counts in {'q': (2, 3), 'k': (1, 1), 'v': (1, 4), 'o': (2, 2)}.items():
        for group, count in zip(groups, counts, strict=True):
            values = torch.linalg.svdvals(moved[name][group].flatten(1)).square()
            kept += float(values[:count].sum())
    total = sum(float(value.square().sum()) for value in moved.values())
    assert found.energy[-1] == pytest.approx(kept / total)


def test_as_many_atoms_as_layers_leave_the_heads_where_they_are():
    found = align(_weights(), 4, 5)
    assert torch.equal(found.heads, torch.arange(4).repeat(4, 1))
    assert torch.equal(found.qk, torch.eye(8).double().expand(4, 4, 8, 8))
    assert found.energy[-1] == pytest.approx(1)


def test_the_control_keeps_shapes_and_norms_and_draws_on_its_own():
    weights = _disguised()
    weights = {
        name: value * torch.tensor([1.0, 2, 3, 9])[:, None, None] for name, value in weights.items()
    }
    state = torch.get_rng_state()
    control = gaussian_control(weights, 4, 1, max_iters=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert control.energy == gaussian_control(weights, 4, num_atoms=1, max_iters=3).energy
    assert control.energy != gaussian_control(weights, 4, 1, max_iters=3, seed=1).energy
    assert control.energy[0] == pytest.approx(81 / 95, abs=0.02)  # the norms alone
    assert control.energy[0] < control.energy[-1] < align(weights, 4, 1).energy[-1]


def _change(name, value):
    return lambda weights: weights.__setitem__(name, value(weights[name]))


@pytest.mark.parametrize(
    ('change', 'options', 'words'),
    [
        (None, {'mode': 'rotate'}, "mode='rotate': expected one of permutation"),
        (None, {'projections': 'qx'}, "projections='qx'"),
        (None, {'projections': ''}, "projections=''"),
        (None, {'num_heads': 5}, 'num_heads=5 does not divide the 32 channels'),
        (None, {'num_heads': 0}, 'num_heads=0'),
        (None, {'num_atoms': 0}, 'num_atoms=0: expected numbers of at least 1'),
        (None, {'num_atoms': [1, 2]}, r'num_atoms=\[1, 2\]'),
        (None, {'num_atoms': {'q': 1}}, 'says nothing of k, o, v'),
        (None, {'groups': [[0, 1]]}, 'each of the layers 0 to 3 in exactly one'),
        (_change('k', lambda w: w[1:]), {}, 'weights: expected q, k, v of shape'),
        (_change('o', lambda w: w.mT), {}, 'weights: expected q, k, v of shape'),
        (_change('o', lambda w: w[0]), {}, 'weights: expected q, k, v of shape'),
        (lambda weights: weights.pop('v'), {}, 'weights: expected q, k, v of shape'),
        (_change('v', lambda w: w / (w[:, :1, :1] != w[2, 0, 0])), {}, r"'v': .* layers \[2\]"),
    ],
)
def test_bad_input(change, options, words):
    weights = _weights()
    if change:
        change(weights)
    with pytest.raises(ValueError, match=words):
        align(weights, **{'num_heads': 4, 'num_atoms': 2, **options})
