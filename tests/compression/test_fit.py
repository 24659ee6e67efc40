"""Atoms, coefficients and residuals of one projection."""

from __future__ import annotations

import pytest
import torch

from masa_vit.compression.budget import RankBudget, allocate, atom_parameters
from masa_vit.compression.fit import Fit, fit_atoms, low_rank, spectra
from masa_vit.compression.metric import Metric
from masa_vit.compression.solver import solve, solve_budget


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def draw_metric(depth: int, out: int, inner: int) -> Metric:
    """Badly conditioned, as second moments are."""
    factors = []
    for size in (out, inner):
        scales = torch.logspace(0, -1.5, size, dtype=torch.float64)
        rows = draw(depth, size, 3 * size) * scales.view(1, -1, 1)
        factors.append(torch.linalg.cholesky(rows @ rows.mT))
    return Metric(*factors)


def cost(metric: Metric, weights: torch.Tensor, atoms: torch.Tensor, coef: torch.Tensor) -> float:
    return float(metric.energy(weights - Fit(atoms, coef, []).shared()).sum())


def test_metric_is_undone():
    metric, weights = draw_metric(3, 5, 4), draw(3, 5, 4)
    torch.testing.assert_close(metric.whiten_back(metric.whiten(weights)), weights)
    torch.testing.assert_close(Metric().whiten(weights), weights)


@pytest.mark.parametrize('sides', ['left', 'right', 'both'])
def test_a_metric_makes_the_fit_better_where_it_counts(sides):
    weights, metric = draw(6, 8, 10), draw_metric(6, 8, 10)
    metric = Metric(
        metric.left if sides != 'right' else None, metric.right if sides != 'left' else None
    )
    plain = fit_atoms(weights, 2)
    fitted = fit_atoms(weights, 2, metric)
    assert cost(metric, weights, *fitted) < 0.9 * cost(metric, weights, *plain)
    further = fit_atoms(weights, 2, metric, start=fitted)
    assert cost(metric, weights, *further) <= cost(metric, weights, *fitted) * (1 + 1e-9)


def test_the_weighted_fit_is_where_the_gradient_vanishes():
    weights, metric = draw(5, 6, 4), draw_metric(5, 6, 4)
    atoms, coef = fit_atoms(weights, 2, metric)
    for _ in range(20):
        atoms, coef = fit_atoms(weights, 2, metric, start=(atoms, coef))
    atoms.requires_grad_()
    coef.requires_grad_()
    metric.energy(weights - Fit(atoms, coef, []).shared()).sum().backward()
    total = float(metric.energy(weights).sum())
    assert float(coef.grad.abs().max() * coef.abs().max()) < 1e-6 * total
    assert float(atoms.grad.abs().max() * atoms.abs().max()) < 1e-2 * total


def test_what_can_be_composed_is_found_under_any_metric():
    weights = torch.tensordot(draw(6, 2), draw(2, 5, 4), 1)
    metric = draw_metric(6, 5, 4)
    assert cost(metric, weights, *fit_atoms(weights, 2, metric)) < 1e-8


@pytest.mark.parametrize('metric', [None, draw_metric(3, 6, 5)], ids=['plain', 'weighted'])
def test_low_rank_loses_the_discarded_singular_values(metric):
    weights = draw(3, 6, 5)
    pairs = low_rank(weights, metric, [0, 2, 5])
    own = torch.stack([up @ down for up, down in pairs])
    lost = (metric or Metric()).energy(weights - own)
    kept = spectra(weights, metric).square()
    for layer, rank in enumerate([0, 2, 5]):
        torch.testing.assert_close(lost[layer], kept[layer, rank:].sum(), rtol=1e-6, atol=1e-9)


def test_energy_goes_to_the_largest_singular_values_for_their_price():
    q = torch.diag_embed(torch.tensor([[9.0, 1, 0, 0], [5, 4, 3, 2]]).double())
    wide = torch.zeros(2, 12, 4, dtype=torch.float64)  # twice the price of q
    wide[0, :2, :2] = torch.diag(torch.tensor([8.0, 4.5]))
    # gains for the price: q 81/8, 25/8, 16/8, 9/8, 4/8, 1/8, wide 64/16, 20.25/16
    for numbers, expected in ((8, [1, 0]), (24, [1, 1]), (40, [3, 1]), (56, [3, 2])):
        ranks = allocate({'q': q, 'wide': wide}, {}, RankBudget('energy', numbers))
        assert [sum(ranks['q']), sum(ranks['wide'])] == expected, numbers
    assert allocate({'q': q}, {}, RankBudget('energy', 16))['q'] == [1, 1]
    weights = {'q': draw(3, 4, 4), 'wide': draw(3, 12, 4)}
    assert allocate(weights, {}, RankBudget('uniform', 3 * 2 * 24 + 5)) == {
        'q': [2, 2, 2],
        'wide': [2, 2, 2],
    }


def test_more_sweeps_lose_less():
    """Weights of low rank, with something in common: either start alone misses one of them."""
    common = draw(8, 8)
    weights = {
        'q': [2 * draw(8, 2) @ draw(2, 8) + draw(1) * common for _ in range(6)],
        'v': [draw(8, 2) @ draw(2, 8) + draw(1) * common for _ in range(6)],
    }
    ranks = {'q': [2] * 6, 'v': [2] * 6}
    groups = [[*range(6)]]
    one = solve(weights, groups, 1, ranks)
    many = solve(weights, groups, 1, ranks, sweeps=6)
    assert many.cost < 0.5 * one.cost
    for name, (fit,) in many.fits.items():
        assert fit.atoms.shape == (1, 8, 8)
        assert [up.shape[1] for up, _ in fit.residual] == ranks[name]


def test_cost_is_the_share_that_is_lost():
    weights = {'q': list(draw(6, 5, 4)), 'o': list(draw(6, 4, 5))}
    groups = [[0, 2, 4], [1, 3, 5]]
    for ranks in (None, {'q': [1, 0, 2, 1, 0, 1], 'o': [1] * 6}):
        solution = solve(weights, groups, 2, ranks)
        lost = total = 0.0
        for name, rows in weights.items():
            for fit, layers in zip(solution.fits[name], groups, strict=True):
                stacked = torch.stack([rows[layer] for layer in layers])
                lost += float((stacked - fit.weights()).square().sum())
                total += float(stacked.square().sum())
        assert solution.cost == pytest.approx(lost / total)


@pytest.mark.parametrize('num_atoms', [None, 2])
@pytest.mark.parametrize('allocation', ['energy', 'uniform'])
def test_a_budget_is_kept_and_used(num_atoms, allocation):
    weights = {'q': list(draw(6, 8, 8)), 'o': list(draw(6, 8, 8))}
    groups, numbers = [[0, 1, 2], [3, 4, 5]], 700
    ranks = RankBudget(allocation, numbers)
    solution = solve_budget(weights, groups, ranks, num_atoms, sweeps=2)
    number = solution.sharing.num_atoms['q'][0]
    assert num_atoms in (None, number)
    ranks = sum(map(sum, solution.sharing.ranks.values()))
    used = atom_parameters(weights, groups, number) + 16 * ranks
    assert used <= numbers
    assert numbers - used < (16 if allocation == 'energy' else 16 * 12)


def test_the_best_number_of_atoms_is_found():
    common = draw(2, 8, 8)
    alike = {'q': [torch.tensordot(draw(2), common, 1) for _ in range(6)]}
    budget = atom_parameters(alike, [[*range(6)]], 4)
    solution = solve_budget(alike, [[*range(6)]], RankBudget('energy', budget), sweeps=2)
    assert solution.sharing.num_atoms['q'] == [2]
    assert solution.cost < 1e-12


@pytest.mark.parametrize('weighted', [False, True])
def test_every_sweep_loses_less(weighted):
    weights = {'q': list(draw(6, 8, 8))}
    metrics = {'q': draw_metric(6, 8, 8)} if weighted else None
    costs = [
        solve(weights, [[*range(6)]], 2, {'q': [2] * 6}, metrics, sweeps).cost
        for sweeps in (1, 2, 4, 8)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.97 * costs[1]


def test_layers_with_an_atom_of_their_own_get_no_residual():
    """It would start at zero on both sides, where no gradient is, and cost parameters."""
    weights = {'q': list(draw(5, 8, 8))}
    for ranks in ({'q': [2] * 5}, RankBudget('energy', 200), RankBudget('uniform', 200)):
        solution = solve(weights, [[0], [1, 2, 3, 4]], 1, ranks, sweeps=2)
        assert solution.sharing.ranks['q'][0] == 0
        assert all(solution.sharing.ranks['q'][1:])


def test_no_weight_gets_more_than_its_dense_price():
    ranks = allocate({'q': draw(2, 8, 8)}, {}, RankBudget('energy', 10_000))
    assert ranks == {'q': [4, 4]}


def test_atoms_and_coefficients_are_on_one_device():
    """Fake tensors of another device stand for a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fit = Fit(torch.empty(2, 3, 4, device='cuda'), torch.empty(5, 2), [])
        assert fit.shared().device.type == 'cuda'
