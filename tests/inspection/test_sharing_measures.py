"""How the layers use the atoms: known answers, and what is invariant to what."""

import pytest
import torch

from masa_vit import inspection


@pytest.fixture
def stack():
    generator = torch.Generator().manual_seed(0)
    coef = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    atoms = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    return coef, atoms


def rescaled(coef, atoms):
    factors = torch.tensor([2.0, -0.5, 7.0], dtype=torch.float64)
    return coef / factors, atoms * factors[:, None, None]


def mixed(coef, atoms):
    mix = torch.tensor([[1.0, 2, 0], [0, 1, -1], [3, 0, 1]], dtype=torch.float64)
    return coef @ torch.linalg.inv(mix), torch.einsum('st,toi->soi', mix, atoms)


def of_mixing(coef, atoms):
    form = inspection.canonical_form(coef, inspection.gram_of_atoms(atoms))
    principal = torch.einsum('rs,soi->roi', form.basis, atoms)
    return {'coef': form.coef, 'energies': form.energies, 'principal atoms': principal}


@pytest.mark.parametrize('change', [rescaled, mixed])
def test_mixing_the_atoms_changes_nothing_of_the_canonical_form(stack, change):
    before, after = of_mixing(*stack), of_mixing(*change(*stack))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)


def test_canonical_form_is_the_same_weights_on_orthonormal_atoms(stack):
    coef, atoms = stack
    form = inspection.canonical_form(coef, inspection.gram_of_atoms(atoms))
    principal = torch.einsum('rs,soi->roi', form.basis, atoms)
    weights = torch.einsum('ls,soi->loi', coef, atoms)
    torch.testing.assert_close(torch.einsum('lr,roi->loi', form.coef, principal), weights)
    torch.testing.assert_close(
        inspection.gram_of_atoms(principal), torch.eye(3, dtype=torch.float64)
    )
    values = torch.linalg.svdvals(weights.flatten(1))[:3].square()
    torch.testing.assert_close(form.energies, values / values.sum())


def test_canonical_form_leaves_out_what_is_not_spanned():
    atoms = torch.eye(4).view(4, 4, 1)
    coef = torch.tensor([[1.0, 0, 0, 0], [2, 0, 0, 0]])
    form = inspection.canonical_form(coef, inspection.gram_of_atoms(atoms))
    torch.testing.assert_close(form.coef, torch.tensor([[1.0], [2]], dtype=torch.float64))
    assert form.energies.tolist() == [1.0]
    nothing = inspection.canonical_form(coef * 0, inspection.gram_of_atoms(atoms))
    assert nothing.coef.shape == (2, 0)


def test_shares_of_orthogonal_atoms_are_their_energies():
    atoms = torch.tensor([[[3.0, 0]], [[0, 4.0]]])
    gram = inspection.gram_of_atoms(atoms)
    shares = inspection.atom_shares(torch.tensor([[1.0, 1.0], [-2, 0], [0, 0]]), gram)
    expected = torch.tensor([[9 / 25, 16 / 25], [1, 0], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected)


def test_shares_sum_to_one_and_can_be_negative():
    atoms = torch.tensor([[[1.0, 0]], [[1.0, 0.1]]])
    shares = inspection.atom_shares(torch.tensor([[2.0, -1.0]]), inspection.gram_of_atoms(atoms))
    assert shares.sum().item() == pytest.approx(1)
    assert shares[0, 1] < 0 < 1 < shares[0, 0]


def test_atoms_that_cancel_have_no_share_in_nothing():
    atom = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    gram = inspection.gram_of_atoms(torch.cat([atom, atom / 3]))
    shares = inspection.atom_shares(torch.tensor([[0.1, -0.3], [1.0, 0.0]]), gram)
    assert shares.tolist() == [[0, 0], [pytest.approx(1), 0]]


@pytest.mark.parametrize('factor', [1e-12, 1e12])
def test_the_scale_of_an_atom_cannot_hide_it(stack, factor):
    coef, atoms = stack
    factors = torch.tensor([factor, 1.0, 1.0], dtype=torch.float64)
    before = of_mixing(coef, atoms)
    after = of_mixing(coef / factors, atoms * factors[:, None, None])
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)


@pytest.mark.parametrize(
    ('sizes', 'number'),
    [([1, 1, 1, 1], 4), ([5, 0, 0, 0], 1), ([2, 2, 0, 0], 2), ([0, 0, 0, 0], 0)],
)
def test_effective_numbers_of_known_sizes(sizes, number):
    sizes = torch.tensor([sizes], dtype=torch.float64)
    assert inspection.participation_ratio(sizes).tolist() == pytest.approx([number])
    assert inspection.entropy_number(sizes).tolist() == pytest.approx([number])


def test_two_equal_atoms_are_doubled_and_an_unused_one_is_dead():
    atom = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
    atoms = torch.cat([atom, other, -3 * atom])
    gram = inspection.gram_of_atoms(atoms)
    assert inspection.doubled_atoms(inspection.atom_overlaps(gram)) == [(0, 2)]
    use = inspection.atom_use(torch.tensor([[1.0, 0, 1], [1, 1e-3, 1]]), gram)
    assert inspection.dead_atoms(use) == [1]
    assert use.sum().item() == pytest.approx(1)
