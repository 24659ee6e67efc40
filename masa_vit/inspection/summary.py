"""All quantities of one model, and of two models compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from masa_vit.inspection import quantities, sharing_measures
from masa_vit.inspection.composed_weights import ProjectionWeights
from masa_vit.inspection.quantities import Arrays, ComparedProjection, compute


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
            gram = sharing_measures.gram_of_atoms(weights.atoms[name])
            sharing = quantities.Sharing(weights.coef[name], gram)
            arrays = compute(quantities.SHARED, sharing)
        layers = quantities.ComposedLayers(weights, name, composed)
        projections[name] = arrays | compute(quantities.WEIGHTS, layers)
        indices[name] = quantities.kept_indices(min(composed.shape[1:]))
        dense += composed.numel()
    dictionaries = {}
    for key, users in weights.users.items():
        coef = torch.cat([weights.coef[name] for name in users])
        atoms = quantities.DictionaryAtoms(coef, weights.atoms[users[0]])
        dictionaries[key] = compute(quantities.DICTIONARY, atoms)
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
        name: compute(quantities.COMPARISON, ComparedProjection(weights, other, name))
        for name in weights.projections
        if name in other.projections
    }
