"""The quantities that a report holds: their axes, and what they are invariant to."""

from __future__ import annotations

from typing import NamedTuple


class Quantity(NamedTuple):
    """What an array of a report is."""

    axes: tuple[str, ...]
    """'layer', 'other_layer', 'atom', 'other_atom', 'principal_atom', 'head', 'index', 'column',
    'image', 'row'."""
    invariant: str
    """To 'mixing' of the atoms by any invertible matrix, to the 'scale' and sign of each, or 'none'.

    The model is the same function after either, if its coefficients are changed the opposite way.
    """
    text: str


MIXING, SCALE, NONE = 'mixing', 'scale', 'none'

_WEIGHTS = {
    'weight_norm': Quantity(('layer',), MIXING, 'Frobenius norm of the weight'),
    'weight_similarity': Quantity(('layer', 'other_layer'), MIXING, 'cosine between weights'),
    'linkage': Quantity(
        ('index', 'column'), MIXING, 'hierarchical clustering by weight_similarity, as scipy has it'
    ),
    'singular_values': Quantity(
        ('layer', 'index'), MIXING, 'singular values of the weight divided by its Frobenius norm'
    ),
    'effective_rank': Quantity(
        ('layer',), MIXING, 'exp of the entropy of the singular values (Roy & Vetterli 2007)'
    ),
    'stable_rank': Quantity(
        ('layer',), MIXING, 'squared Frobenius norm over squared spectral norm'
    ),
    'gaussian_singular_values': Quantity(
        ('index',),
        MIXING,
        'of a Gaussian matrix of the same shape and Frobenius norm 1: the control',
    ),
    'gaussian_effective_rank': Quantity((), MIXING, 'of the same Gaussian matrix'),
    'head_norms': Quantity(
        ('layer', 'head'), MIXING, "Frobenius norm of the head's rows (of O: columns)"
    ),
    'residual_share': Quantity(
        ('layer',), MIXING, "signed share of the layer's own residual: <R, W> / ||W||^2"
    ),
}

_SHARED = {
    'coefficients': Quantity(('layer', 'atom'), NONE, 'C as it is stored'),
    'contributions': Quantity(('layer', 'atom'), SCALE, '||c D||: what the atom adds to the layer'),
    'shares': Quantity(
        ('layer', 'atom'), SCALE, '<c D, W> / ||W||^2 of the atoms, signed; the rows sum to 1'
    ),
    'effective_atoms': Quantity(
        ('layer',), SCALE, 'participation ratio of the squared contributions'
    ),
    'effective_atoms_entropy': Quantity(
        ('layer',), SCALE, 'exp of the entropy of the squared contributions'
    ),
    'coefficient_similarity': Quantity(
        ('layer', 'other_layer'), NONE, 'cosine between rows of C as it is stored'
    ),
    'canonical_coefficients': Quantity(
        ('layer', 'principal_atom'),
        MIXING,
        'coefficients on the principal atoms (orthonormal, the strongest first); of atoms with nearly '
        'equal energies by chance',
    ),
    'canonical_energies': Quantity(
        ('principal_atom',), MIXING, 'share of the energy of all layers that it captures'
    ),
    'spectral_atoms': Quantity(
        (), MIXING, 'effective number of atoms: participation ratio of canonical_energies'
    ),
}

_DICTIONARY = {
    'atom_norm': Quantity(('atom',), NONE, 'Frobenius norm as it is stored'),
    'atom_use': Quantity(
        ('atom',), SCALE, 'share in the sum of the squared contributions to all layers'
    ),
    'atom_overlap': Quantity(('atom', 'other_atom'), SCALE, 'absolute cosine between atoms'),
    'atom_singular_values': Quantity(
        ('atom', 'index'), SCALE, 'singular values divided by the Frobenius norm'
    ),
    'atom_effective_rank': Quantity(('atom',), SCALE, 'exp of the entropy of the singular values'),
    'used_atoms': Quantity((), SCALE, 'effective number: participation ratio of atom_use'),
}

_IMAGES = {
    'attention_distance': Quantity(
        ('layer', 'head'), MIXING, 'mean distance of attended patches, pixels'
    ),
    'cka': Quantity(
        ('layer', 'other_layer'), MIXING, 'linear CKA between outputs of blocks, unbiased'
    ),
    'num_images': Quantity((), MIXING, 'images that attention distance and CKA are taken on'),
    'num_ablated': Quantity((), MIXING, 'images that the removal of atoms is measured on'),
    'accuracy': Quantity((), MIXING, 'top-1 on them with all atoms, percent'),
    'class_attention': Quantity(
        ('image', 'layer', 'head', 'row', 'column'), MIXING, 'attention to each patch'
    ),
}

_ABLATION = {
    'ablation_kl': Quantity(
        ('layer', 'atom'), SCALE, 'KL divergence of the predictions without the atom there, nats'
    ),
    'ablation_logits': Quantity(
        ('layer', 'atom'), SCALE, 'relative change of the logits without the atom there'
    ),
    'ablation_accuracy': Quantity(
        ('layer', 'atom'), SCALE, 'change of top-1 without the atom there, percent points'
    ),
    'ablation_kl_everywhere': Quantity(
        ('atom',), SCALE, 'KL divergence without the atom in any layer, nats'
    ),
    'ablation_logits_everywhere': Quantity(
        ('atom',), SCALE, 'relative change of the logits without the atom in any layer'
    ),
    'ablation_accuracy_everywhere': Quantity(
        ('atom',), SCALE, 'change of top-1 without the atom in any layer, percent points'
    ),
}

_HISTORY = {
    'composed_similarity': Quantity(
        ('layer', 'other_layer'),
        MIXING,
        'cosine between weights as atoms compose them: no residuals',
    ),
}

_COMPARISON = {
    'other_cosine': Quantity(('layer',), MIXING, 'cosine between the weights of the two models'),
    'other_distance': Quantity(
        ('layer',), MIXING, 'norm of the difference of the weights over that of the first'
    ),
    'subspace_angles': Quantity(
        ('index',), MIXING, 'principal angles between the spans of the atoms, degrees'
    ),
    'coefficient_angles': Quantity(
        ('index',), MIXING, 'principal angles between the spans of the columns of C, degrees'
    ),
    'matched_atom': Quantity(
        ('atom',), SCALE, 'the atom of the other model that is matched to this one (-1: none)'
    ),
    'matched_cosine': Quantity(('atom',), SCALE, 'absolute cosine of the matched atoms (0: none)'),
    'matched_contributions': Quantity(
        ('layer', 'atom'),
        SCALE,
        'contributions to the layers of the other model, its atoms in this order (0: none)',
    ),
}

QUANTITIES: dict[str, Quantity] = {
    **_SHARED, **_DICTIONARY, **_WEIGHTS, **_IMAGES, **_ABLATION, **_COMPARISON, **_HISTORY
}  # fmt: skip
"""Name of an array of a report -> what it is."""
