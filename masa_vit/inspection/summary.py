"""All quantities of one model, and of two models compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch

from masa_vit.inspection import sharing_measures as sharing
from masa_vit.inspection import similarity, spectra
from masa_vit.inspection.projections import ProjectionWeights
from masa_vit.inspection.quantities import (
    COMPARISON,
    DICTIONARY,
    SHARED,
    WEIGHTS,
    Arrays,
    compute,
    kept_indices,
)

_gaussian_values = cache(spectra.gaussian_values)


class Sharing:
    """C (L, S) of a projection, or of all that use a dictionary, and the Gram matrix (S, S)."""

    def __init__(self, coef: torch.Tensor, gram: torch.Tensor) -> None:
        self.coef, self.gram = coef, gram

    @cached_property
    def contributions(self) -> torch.Tensor:
        """Norm of each atom's part of each layer, (L, S)."""
        return sharing.contributions(self.coef, self.gram)

    @cached_property
    def canonical(self) -> sharing.CanonicalForm:
        """C on the principal atoms."""
        return sharing.canonical_form(self.coef, self.gram)

    @cached_property
    def use(self) -> torch.Tensor:
        """Share of each atom in the squared contributions, (S,)."""
        return sharing.atom_use(self.coef, self.gram)


class DictionaryAtoms(Sharing):
    """The atoms (S, out, in) of a dictionary, with C of all projections that use it."""

    def __init__(self, coef: torch.Tensor, atoms: torch.Tensor) -> None:
        super().__init__(coef, sharing.gram_of_atoms(atoms))
        self.norms = sharing.atom_norms(self.gram)
        self.values = spectra.singular_values(atoms)


class ComposedLayers:
    """The weights of a projection in all layers, (L, out, in)."""

    def __init__(self, weights: ProjectionWeights, name: str, composed: torch.Tensor) -> None:
        self.name, self.composed, self.num_heads = name, composed, weights.num_heads
        self.residuals = weights.residuals.get(name)
        self.norms = composed.flatten(1).double().norm(dim=1)
        self.cosines = similarity.cosine_similarity(composed)
        self.values = spectra.singular_values(composed)
        self.gaussian = _gaussian_values(tuple(composed.shape[1:]))

    def head_norms(self) -> torch.Tensor | None:
        """Norms (L, H); None if the heads are unknown or do not divide the weight."""
        heads, output = self.num_heads, self.name == 'o'
        if not heads or self.composed.shape[2 if output else 1] % heads:
            return None
        return spectra.head_norms(self.composed, heads, output)

    def residual_share(self) -> torch.Tensor | None:
        """Shares (L,); None if no layer has a residual."""
        if self.residuals is None:
            return None
        shares = torch.zeros(len(self.norms), dtype=torch.float64)
        for layer, (up, down) in self.residuals.items():
            product = ((up @ down).double() * self.composed[layer]).sum()
            if self.norms[layer] > 0:
                shares[layer] = product / self.norms[layer].square()
        return shares


class ComparedProjection:
    """A projection of two models."""

    def __init__(self, first: ProjectionWeights, other: ProjectionWeights, name: str) -> None:
        weights = first.compose(name), other.compose(name)
        self.weights = weights if weights[0].shape == weights[1].shape else None
        both_share = name in first.coef and name in other.coef
        self.coefs = (first.coef[name], other.coef[name]) if both_share else None
        atoms = (first.atoms[name], other.atoms[name]) if both_share else None
        self.atoms = atoms if atoms and atoms[0].shape[1:] == atoms[1].shape[1:] else None

    def cosine(self) -> torch.Tensor | None:
        """Cosines (L,); None if the weights differ in shape."""
        return self.weights and similarity.cosine_similarity(*self.weights).diagonal()

    def distance(self) -> torch.Tensor | None:
        """Relative distances (L,); None if the weights differ in shape."""
        if self.weights is None:
            return None
        first, second = self.weights
        difference, norm = ((first - second).flatten(1).norm(dim=1), first.flatten(1).norm(dim=1))
        return torch.where(norm > 0, difference / norm, 0.0)

    def coefficient_angles(self) -> torch.Tensor | None:
        """Principal angles; None if the depths differ."""
        if self.coefs is None or len(self.coefs[0]) != len(self.coefs[1]):
            return None
        return similarity.principal_angles(self.coefs[0].T, self.coefs[1].T)

    @cached_property
    def matching(self) -> similarity.Matching | None:
        """Matched atoms; None if their widths differ."""
        return similarity.match_atoms(*self.atoms) if self.atoms else None

    def matched(self, values: torch.Tensor, missing: float = 0) -> torch.Tensor | None:
        """Values (..., pairs) of the matched atoms at the places (..., S) of the first's."""
        if self.matching is None or self.coefs is None:
            return None
        placed = values.new_full((*values.shape[:-1], self.coefs[0].shape[1]), missing)
        placed[..., [atom for atom, _ in self.matching.pairs]] = values
        return placed

    def partners(self) -> torch.Tensor:
        """The other model's atoms of the pairs."""
        return torch.tensor(
            [partner for _, partner in self.matching.pairs] if self.matching else []
        )

    def contributions(self) -> torch.Tensor | None:
        """Contributions (L, S) of the other model's matched atoms."""
        if self.atoms is None or self.coefs is None:
            return None
        gram = sharing.gram_of_atoms(self.atoms[1])
        return self.matched(sharing.contributions(self.coefs[1], gram)[:, self.partners()])


@dataclass
class Summary:
    """The quantities of one model."""

    depth: int
    """L."""
    num_heads: int | None
    attention_parameters: int
    """Numbers stored for the projections: atoms, coefficients (also frozen ones) or the MLP that
    makes them, residuals, dense weights."""
    dense_attention_parameters: int
    """Weights of the projections without sharing."""
    projections: dict[str, Arrays]
    """Projection -> quantities of its layers."""
    dictionaries: dict[str, Arrays] = field(default_factory=dict)
    """Name of a dictionary -> quantities of its atoms."""
    dictionary_of: dict[str, str] = field(default_factory=dict)
    """Projection that shares -> its dictionary."""
    indices: dict[str, list[int]] = field(default_factory=dict)
    """Projection -> which of the singular values the arrays hold (0: the largest)."""
    images: Arrays = field(default_factory=dict)
    """Quantities of the model on images, if there were any."""

    @property
    def dead(self) -> dict[str, list[int]]:
        """Dictionary -> its dead atoms."""
        return {
            name: sharing.dead_atoms(arrays['atom_use'])
            for name, arrays in self.dictionaries.items()
        }

    @property
    def doubled(self) -> dict[str, list[tuple[int, int]]]:
        """Dictionary -> pairs of equal atoms."""
        return {
            name: sharing.doubled_atoms(arrays['atom_overlap'])
            for name, arrays in self.dictionaries.items()
        }


def summarize(weights: ProjectionWeights) -> Summary:
    """Compute all quantities that need only weights.

    Args:
        weights: Of `projection_weights`; quantities of atoms are left out for dense projections.

    Raises:
        ValueError: If a weight is not finite.
        ImportError: If scipy is missing (extra `inspect`).
    """
    projections: dict[str, Arrays] = {}
    indices: dict[str, list[int]] = {}
    dense = 0
    for name in weights.projections:
        composed = weights.compose(name)  # (L, out, in)
        if not composed.isfinite().all():
            raise ValueError(f'the weights of projection {name!r} are not finite')
        arrays: Arrays = {}
        if name in weights.coef:
            gram = sharing.gram_of_atoms(weights.atoms[name])
            arrays = compute(SHARED, Sharing(weights.coef[name], gram))
        projections[name] = arrays | compute(WEIGHTS, ComposedLayers(weights, name, composed))
        indices[name] = kept_indices(min(composed.shape[1:]))
        dense += composed.numel()
    dictionaries = {}
    for key, users in weights.users.items():
        coef = torch.cat([weights.coef[name] for name in users])
        atoms = DictionaryAtoms(coef, weights.atoms[users[0]])
        dictionaries[key] = compute(DICTIONARY, atoms)
    return Summary(
        depth=weights.depth,
        num_heads=weights.num_heads,
        attention_parameters=weights.num_parameters,
        dense_attention_parameters=dense,
        projections=projections,
        dictionaries=dictionaries,
        dictionary_of=dict(weights.dictionaries),
        indices=indices,
    )


def compare(weights: ProjectionWeights, other: ProjectionWeights) -> Mapping[str, Arrays]:
    """Compare two models, projection by projection; quantities that need equal shapes may be missing.

    Weights and atoms need the same width, layers the same depth; S may differ. Atoms are matched by
    `match_atoms`.

    Returns:
        Projection -> quantities, for the projections that both have.
    """
    return {
        name: compute(COMPARISON, ComparedProjection(weights, other, name))
        for name in weights.projections
        if name in other.projections
    }
