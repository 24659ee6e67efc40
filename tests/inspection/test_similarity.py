"""Similarity of layers, atoms and models: known answers."""

import pytest
import torch

from masa_vit import inspection

DEGREES = 1e-5
"""The arccosine makes 1e-6 degrees of a cosine that is one rounding below 1."""


def test_cosines_of_two_models_and_of_nothing():
    rows = torch.tensor([[1.0, 0], [0, 2], [0, 0]])
    others = torch.tensor([[-3.0, 0]])
    assert inspection.cosine_similarity(rows, others).tolist() == [[-1], [0], [0]]


def test_layers_of_two_kinds_are_clustered_apart():
    similarity = torch.tensor(
        [[1, 0.1, 0.9, 0.1], [0.1, 1, 0.1, 0.8], [0.9, 0.1, 1, 0.1], [0.1, 0.8, 0.1, 1]]
    )
    linkage = inspection.cluster_layers(similarity)
    assert linkage[0].tolist() == pytest.approx([0, 2, 0.1, 2])
    assert linkage[1].tolist() == pytest.approx([1, 3, 0.2, 2])
    assert linkage[2, 2:].tolist() == pytest.approx([0.9, 4])


def test_a_single_layer_is_a_cluster_of_its_own():
    linkage = inspection.cluster_layers(torch.ones(1, 1))
    assert linkage.shape == (0, 4)


def test_principal_angles_are_known_and_invariant_to_mixing():
    axes = torch.eye(6, dtype=torch.float64)
    turned = (axes[0] + axes[3]) / 2**0.5
    atoms, others = axes[:2], torch.stack([turned, axes[1]])
    expected = [0, 45]
    assert inspection.principal_angles(atoms, others).tolist() == pytest.approx(
        expected, abs=DEGREES
    )
    mix = torch.tensor([[1.0, 2], [0, -3]], dtype=torch.float64)
    mixed = inspection.principal_angles(mix @ atoms, others)
    assert mixed.tolist() == pytest.approx(expected, abs=DEGREES)


def test_principal_angles_leave_out_doubled_atoms():
    atoms = torch.tensor([[1.0, 0, 0], [2, 0, 0]])
    angles = inspection.principal_angles(atoms, torch.eye(3))
    assert angles.tolist() == pytest.approx([0], abs=DEGREES)


def test_atoms_in_another_order_scale_and_sign_are_matched():
    atoms = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    others = torch.stack([2 * atoms[2], -atoms[0], torch.randn(4, 5), 0.1 * atoms[1]])
    matching = inspection.match_atoms(atoms, others)
    assert matching.pairs == [(0, 1), (1, 3), (2, 0)]
    assert matching.cosines.tolist() == pytest.approx([-1, 1, 1])


@pytest.mark.parametrize('function', [inspection.principal_angles, inspection.match_atoms])
def test_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r'\(4, 5\) and \(4, 6\)'):
        function(torch.randn(2, 4, 5), torch.randn(2, 4, 6))
