"""All quantities of one model, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from masa_vit.inspection import sharing_measures, similarity, spectra
from masa_vit.inspection.composed_weights import ProjectionWeights

Arrays = dict[str, torch.Tensor]
"""Name of a quantity (`QUANTITIES`) -> its array."""

MOST_VALUES = 64
"""Singular values of each matrix that are kept, evenly out of all."""


@dataclass
class Summary:
    """What `masa_vit.inspection` computes of one model."""

    depth: int
    """L."""
    num_heads: int | None
    attention_parameters: int
    """Numbers stored for the projections: atoms, coefficients (also frozen ones) or what makes them,
    residuals, dense weights."""
    dense_attention_parameters: int
    """Weights of the projections without sharing."""
    projections: dict[str, Arrays]
    """Projection -> quantities of its layers."""
    dictionaries: dict[str, Arrays] = field(default_factory=dict)
    """Name of a dictionary -> quantities of its atoms."""
    dictionary_of: dict[str, str] = field(default_factory=dict)
    """Projection that shares -> its dictionary."""
    indices: dict[str, list[int]] = field(default_factory=dict)
    """Projection -> which of the singular values are kept (0: the largest)."""
    images: Arrays = field(default_factory=dict)
    """Quantities of the model on images, if there were any."""

    @property
    def dead(self) -> dict[str, list[int]]:
        """Dictionary -> its dead atoms."""
        return {
            name: sharing_measures.dead_atoms(arrays['atom_use'])
            for name, arrays in self.dictionaries.items()
        }

    @property
    def doubled(self) -> dict[str, list[tuple[int, int]]]:
        """Dictionary -> pairs of equal atoms."""
        return {
            name: sharing_measures.doubled_atoms(arrays['atom_overlap'])
            for name, arrays in self.dictionaries.items()
        }


def summarize(weights: ProjectionWeights) -> Summary:
    """Compute all quantities that need weights alone.

    Args:
        weights: Of `projection_weights`; dense projections have no atoms, and all the rest.

    Raises:
        ValueError: If a weight is not finite.
        ImportError: If scipy is missing (extra `inspect`).
    """
    controls: dict[tuple[int, ...], torch.Tensor] = {}
    projections: dict[str, Arrays] = {}
    indices: dict[str, list[int]] = {}
    dense = 0
    for name in weights.projections:
        composed = weights.compose(name)
        if not composed.isfinite().all():
            raise ValueError(f'the weights of projection {name!r} are not finite: nothing to see')
        shape = tuple(composed.shape[1:])
        if shape not in controls:
            controls[shape] = spectra.gaussian_values(shape)
        arrays = _of_atoms(weights, name) if name in weights.coef else {}
        projections[name] = arrays | _of_weights(composed, controls[shape], weights, name)
        indices[name] = _indices(min(shape))
        dense += composed.numel()
    return Summary(
        depth=weights.depth,
        num_heads=weights.num_heads,
        attention_parameters=weights.num_parameters,
        dense_attention_parameters=dense,
        projections=projections,
        dictionaries={key: _of_dictionary(weights, names) for key, names in weights.users.items()},
        dictionary_of=dict(weights.dictionaries),
        indices=indices,
    )


def _of_atoms(weights: ProjectionWeights, name: str) -> Arrays:
    coef = weights.coef[name]
    gram = sharing_measures.gram_of_atoms(weights.atoms[name])
    contributions = sharing_measures.contributions(coef, gram)
    canonical = sharing_measures.canonical_form(coef, gram)
    return {
        'coefficients': coef,
        'contributions': contributions,
        'shares': sharing_measures.atom_shares(coef, gram),
        'effective_atoms': sharing_measures.participation_ratio(contributions.square()),
        'effective_atoms_entropy': sharing_measures.entropy_number(contributions.square()),
        'coefficient_similarity': similarity.cosine_similarity(coef),
        'canonical_coefficients': canonical.coef,
        'canonical_energies': canonical.energies,
        'spectral_atoms': sharing_measures.participation_ratio(canonical.energies),
    }


def _of_weights(
    composed: torch.Tensor, control: torch.Tensor, weights: ProjectionWeights, name: str
) -> Arrays:
    norms = composed.flatten(1).double().norm(dim=1)
    alike = similarity.cosine_similarity(composed)
    values = spectra.singular_values(composed)
    keep = _indices(values.shape[1])
    arrays = {
        'weight_norm': norms,
        'weight_similarity': alike,
        'linkage': similarity.cluster_layers(alike),
        'singular_values': _relative(values, norms)[:, keep],
        'effective_rank': spectra.effective_rank(values),
        'stable_rank': spectra.stable_rank(values),
        'gaussian_singular_values': control[keep],
        'gaussian_effective_rank': spectra.effective_rank(control),
    }
    heads = weights.num_heads
    if heads and composed.shape[2 if name == 'o' else 1] % heads == 0:
        arrays['head_norms'] = spectra.head_norms(composed, heads, output=name == 'o')
    if name in weights.residuals:
        arrays['residual_share'] = torch.zeros(len(norms), dtype=torch.float64)
        for layer, (up, down) in weights.residuals[name].items():
            own = ((up @ down).double() * composed[layer]).sum()
            if norms[layer] > 0:
                arrays['residual_share'][layer] = own / norms[layer].square()
    return arrays


def _of_dictionary(weights: ProjectionWeights, users: list[str]) -> Arrays:
    atoms = weights.atoms[users[0]]
    gram = sharing_measures.gram_of_atoms(atoms)
    norms = sharing_measures.atom_norms(gram)
    use = sharing_measures.atom_use(torch.cat([weights.coef[name] for name in users]), gram)
    values = spectra.singular_values(atoms)
    keep = _indices(values.shape[1])
    return {
        'atom_norm': norms,
        'atom_use': use,
        'atom_overlap': sharing_measures.atom_overlaps(gram),
        'atom_singular_values': _relative(values, norms)[:, keep],
        'atom_effective_rank': spectra.effective_rank(values),
        'used_atoms': sharing_measures.participation_ratio(use),
    }


def _relative(values: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return torch.where(norms > 0, values.T / norms, 0.0).T


def _indices(size: int) -> list[int]:
    count = min(size, MOST_VALUES)
    return [index * (size - 1) // max(1, count - 1) for index in range(count)]


def compare(weights: ProjectionWeights, other: ProjectionWeights) -> Mapping[str, Arrays]:
    """Compare two models, projection by projection; what cannot be compared is left out.

    Weights and atoms need the same width, layers the same depth; S may differ. Atoms are matched by
    `match_atoms`.

    Returns:
        Projection -> quantities, for the projections that both have.
    """
    compared: dict[str, Arrays] = {}
    for name in weights.projections:
        if name not in other.projections:
            continue
        arrays = compared[name] = {}
        first, second = weights.compose(name), other.compose(name)
        if first.shape == second.shape:
            difference, norm = (each.flatten(1).norm(dim=1) for each in (first - second, first))
            arrays['other_cosine'] = similarity.cosine_similarity(first, second).diagonal()
            arrays['other_distance'] = torch.where(norm > 0, difference / norm, 0.0)
        if name in weights.coef and name in other.coef:
            arrays.update(_compare_atoms(weights, other, name))
    return compared


def _compare_atoms(weights: ProjectionWeights, other: ProjectionWeights, name: str) -> Arrays:
    coef, others = weights.coef[name], other.coef[name]
    arrays: Arrays = {}
    if len(coef) == len(others):
        arrays['coefficient_angles'] = similarity.principal_angles(coef.T, others.T)
    if weights.atoms[name].shape[1:] != other.atoms[name].shape[1:]:
        return arrays
    matching = similarity.match_atoms(weights.atoms[name], other.atoms[name])
    matched = torch.full((coef.shape[1],), -1)
    cosines = torch.zeros(coef.shape[1], dtype=torch.float64)
    contributions = torch.zeros(len(others), coef.shape[1], dtype=torch.float64)
    of_other = sharing_measures.contributions(
        others, sharing_measures.gram_of_atoms(other.atoms[name])
    )
    for (atom, partner), cosine in zip(matching.pairs, matching.cosines, strict=True):
        matched[atom], cosines[atom] = partner, cosine.abs()
        contributions[:, atom] = of_other[:, partner]
    arrays['subspace_angles'] = similarity.principal_angles(weights.atoms[name], other.atoms[name])
    return arrays | {
        'matched_atom': matched,
        'matched_cosine': cosines,
        'matched_contributions': contributions,
    }
