"""The quantities of a report: each with its axes, its invariance, its meaning and its computation.

CSV, JSON, the figures and their explanations derive from these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from masa_vit.inspection import sharing_measures as sharing
from masa_vit.inspection import similarity, spectra

Arrays = dict[str, torch.Tensor]
"""Name of a quantity -> its array."""

MOST_VALUES = 64
"""Singular values of each matrix that a report holds, evenly out of all."""

MIXING, SCALE, NONE = 'mixing', 'scale', 'none'


class Quantity(NamedTuple):
    """An array of a report."""

    axes: tuple[str, ...]
    """'layer', 'other_layer', 'atom', 'other_atom', 'principal_atom', 'head', 'index', 'column',
    'image', 'row'."""
    invariant: str
    """To 'mixing' of the atoms by any invertible matrix, to the 'scale' and sign of each, or 'none'.

    The model is the same function after either, if its coefficients are changed the opposite way.
    """
    text: str
    compute: Callable[[Any], torch.Tensor | None] | None = None
    """From the object that the table names; None as its result: not available there."""
    label: str = ''
    """Of an axis or a colour bar, with the unit."""
    signed: bool = False
    """The colours part at zero."""


def compute(table: Mapping[str, Quantity], source: Any) -> Arrays:
    """Compute the quantities of a table that are available for `source`."""
    found = {name: each.compute(source) for name, each in table.items() if each.compute}
    return {name: value for name, value in found.items() if value is not None}


def kept_indices(size: int) -> list[int]:
    """Return which of `size` singular values a report holds (0: the largest)."""
    count = min(size, MOST_VALUES)
    return [index * (size - 1) // max(1, count - 1) for index in range(count)]


def relative(values: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Divide the kept singular values (n, r) by the norms (n,) of their matrices; 0 for norm 0."""
    kept = values[:, kept_indices(values.shape[1])]
    return torch.where(norms > 0, kept.T / norms, 0.0).T


def _at(axes: str) -> tuple[str, ...]:
    return tuple(axes.split())


# of a `Sharing` of one projection
SHARED = {
    'coefficients': Quantity(
        _at('layer atom'), NONE, 'C as it is stored',
        lambda s: s.coef, 'coefficient', signed=True,
    ),
    'contributions': Quantity(
        _at('layer atom'), SCALE, "||c D||: norm of the atom's part of the layer",
        lambda s: s.contributions, 'contribution',
    ),
    'shares': Quantity(
        _at('layer atom'), SCALE, '<c D, W> / ||W||^2 of the atoms, signed; the rows sum to 1',
        lambda s: sharing.atom_shares(s.coef, s.gram), 'share of the weight', signed=True,
    ),
    'effective_atoms': Quantity(
        _at('layer'), SCALE, 'participation ratio of the squared contributions',
        lambda s: sharing.participation_ratio(s.contributions.square()), 'effective atoms',
    ),
    'effective_atoms_entropy': Quantity(
        _at('layer'), SCALE, 'exp of the entropy of the squared contributions',
        lambda s: sharing.entropy_number(s.contributions.square()), 'effective atoms by entropy',
    ),
    'coefficient_similarity': Quantity(
        _at('layer other_layer'), NONE, 'cosine between rows of C as it is stored',
        lambda s: similarity.cosine_similarity(s.coef), 'cosine', signed=True,
    ),
    'canonical_coefficients': Quantity(
        _at('layer principal_atom'), MIXING,
        'coefficients on the principal atoms (orthonormal, the strongest first); of atoms with nearly '
        'equal energies by chance',
        lambda s: s.canonical.coef, 'coefficient', signed=True,
    ),
    'canonical_energies': Quantity(
        _at('principal_atom'), MIXING, 'share of the energy of all layers that it captures',
        lambda s: s.canonical.energies,
    ),
    'spectral_atoms': Quantity(
        (), MIXING, 'effective number of atoms: participation ratio of canonical_energies',
        lambda s: sharing.participation_ratio(s.canonical.energies),
    ),
}  # fmt: skip

# of `DictionaryAtoms`
DICTIONARY = {
    'atom_norm': Quantity(
        _at('atom'), NONE, 'Frobenius norm as it is stored', lambda d: d.norms
    ),
    'atom_use': Quantity(
        _at('atom'), SCALE, 'share in the sum of the squared contributions to all layers',
        lambda d: d.use, 'share of the use',
    ),
    'atom_overlap': Quantity(
        _at('atom other_atom'), SCALE, 'absolute cosine between atoms',
        lambda d: sharing.atom_overlaps(d.gram), '|cosine|',
    ),
    'atom_singular_values': Quantity(
        _at('atom index'), SCALE, 'singular values divided by the Frobenius norm',
        lambda d: relative(d.values, d.norms), 'singular value / norm',
    ),
    'atom_effective_rank': Quantity(
        _at('atom'), SCALE, 'exp of the entropy of the singular values',
        lambda d: spectra.effective_rank(d.values), 'effective rank',
    ),
    'used_atoms': Quantity(
        (), SCALE, 'effective number: participation ratio of atom_use',
        lambda d: sharing.participation_ratio(d.use),
    ),
}  # fmt: skip

# of `ComposedLayers`
WEIGHTS = {
    'weight_norm': Quantity(
        _at('layer'), MIXING, 'Frobenius norm of the weight', lambda w: w.norms
    ),
    'weight_similarity': Quantity(
        _at('layer other_layer'), MIXING, 'cosine between weights',
        lambda w: w.cosines, 'cosine', signed=True,
    ),
    'linkage': Quantity(
        _at('index column'), MIXING,
        'hierarchical clustering by weight_similarity, as scipy has it',
        lambda w: similarity.cluster_layers(w.cosines),
    ),
    'singular_values': Quantity(
        _at('layer index'), MIXING, 'singular values of the weight divided by its Frobenius norm',
        lambda w: relative(w.values, w.norms), 'singular value / norm',
    ),
    'effective_rank': Quantity(
        _at('layer'), MIXING, 'exp of the entropy of the singular values (Roy & Vetterli 2007)',
        lambda w: spectra.effective_rank(w.values), 'effective rank',
    ),
    'stable_rank': Quantity(
        _at('layer'), MIXING, 'squared Frobenius norm over squared spectral norm',
        lambda w: spectra.stable_rank(w.values), 'stable rank',
    ),
    'gaussian_singular_values': Quantity(
        _at('index'), MIXING,
        'of a Gaussian matrix of the same shape and Frobenius norm 1: the control',
        lambda w: w.gaussian[kept_indices(len(w.gaussian))],
    ),
    'gaussian_effective_rank': Quantity(
        (), MIXING, 'of the same Gaussian matrix', lambda w: spectra.effective_rank(w.gaussian)
    ),
    'head_norms': Quantity(
        _at('layer head'), MIXING, "Frobenius norm of the head's rows (of O: columns)",
        lambda w: w.head_norms(), 'Frobenius norm',
    ),
    'residual_share': Quantity(
        _at('layer'), MIXING, "signed share of the layer's residual: <R, W> / ||W||^2",
        lambda w: w.residual_share(),
    ),
}  # fmt: skip

# computed by `masa_vit.inspection.image_analysis`
IMAGES = {
    'attention_distance': Quantity(
        _at('layer head'), MIXING, 'mean distance of attended patches, pixels',
        label='attention distance, pixels',
    ),
    'cka': Quantity(
        _at('layer other_layer'), MIXING, 'linear CKA between outputs of blocks, unbiased',
        label='linear CKA',
    ),
    'num_images': Quantity((), MIXING, 'images that attention distance and CKA are taken on'),
    'num_ablated': Quantity((), MIXING, 'images that the removal of atoms is measured on'),
    'accuracy': Quantity((), MIXING, 'top-1 on them with all atoms, percent'),
    'class_attention': Quantity(
        _at('image layer head row column'), MIXING, 'attention to each patch', label='attention'
    ),
}  # fmt: skip

_EFFECTS = (
    ('kl', 'KL divergence of the predictions', ', nats', 'KL divergence, nats'),
    ('logits', 'relative change of the logits', '', 'relative change of logits'),
    ('accuracy', 'change of top-1', ', percent points', 'change of top-1, points'),
)

ABLATION = {
    f'ablation_{name}{suffix}': Quantity(
        axes, SCALE, f'{text} without the atom {where}{unit}',
        label=label, signed=name == 'accuracy',
    )
    for suffix, axes, where in (
        ('', _at('layer atom'), 'there'), ('_everywhere', _at('atom'), 'in any layer')
    )
    for name, text, unit, label in _EFFECTS
}  # fmt: skip

# of a `ComparedProjection`
COMPARISON = {
    'other_cosine': Quantity(
        _at('layer'), MIXING, 'cosine between the weights of the two models',
        lambda c: c.cosine(), 'cosine of the weights',
    ),
    'other_distance': Quantity(
        _at('layer'), MIXING, 'norm of the difference of the weights over that of the first',
        lambda c: c.distance(), 'relative distance',
    ),
    'coefficient_angles': Quantity(
        _at('index'), MIXING,
        'principal angles between the spans of the columns of C, degrees',
        lambda c: c.coefficient_angles(), 'angle, degrees',
    ),
    'subspace_angles': Quantity(
        _at('index'), MIXING, 'principal angles between the spans of the atoms, degrees',
        lambda c: c.atoms and similarity.principal_angles(*c.atoms), 'angle, degrees',
    ),
    'matched_atom': Quantity(
        _at('atom'), SCALE, 'the atom of the other model that is matched to this one (-1: none)',
        lambda c: c.matched(c.partners(), -1),
    ),
    'matched_cosine': Quantity(
        _at('atom'), SCALE, 'absolute cosine of the matched atoms (0: none)',
        lambda c: c.matching and c.matched(c.matching.cosines.abs()),
    ),
    'matched_contributions': Quantity(
        _at('layer atom'), SCALE,
        'contributions to the layers of the other model, its atoms in this order (0: none)',
        lambda c: c.contributions(), 'contribution',
    ),
}  # fmt: skip

# of a `Sharing`, at each epoch of a run
HISTORY = {
    'composed_similarity': Quantity(
        _at('layer other_layer'), MIXING,
        'cosine between weights as atoms compose them: no residuals',
        lambda s: similarity.composed_similarity(s.coef, s.gram), 'cosine', signed=True,
    ),
}  # fmt: skip

QUANTITIES: dict[str, Quantity] = {
    **SHARED, **DICTIONARY, **WEIGHTS, **IMAGES, **ABLATION, **COMPARISON, **HISTORY
}  # fmt: skip
"""Name of an array of a report -> what it is."""
