"""Inspect the sharing of a model: atoms, coefficients, similarity of layers, activations."""

from masa_vit.inspection.ablation import AtomAblation, Effect, ablate_atoms
from masa_vit.inspection.activations import attention_distance, attention_maps, class_attention
from masa_vit.inspection.cka import layer_cka, linear_cka
from masa_vit.inspection.parameter_counts import ParameterCounts, count_parameters
from masa_vit.inspection.projections import (
    ProjectionWeights,
    coefficients,
    projection_weights,
)
from masa_vit.inspection.quantities import QUANTITIES, Quantity
from masa_vit.inspection.records import (
    AtomRecord,
    history_quantities,
    read_history,
    read_record,
    record_of,
    remove_records,
    summary_numbers,
    write_record,
)
from masa_vit.inspection.sharing_measures import (
    CanonicalForm,
    atom_norms,
    atom_overlaps,
    atom_shares,
    atom_use,
    canonical_form,
    contributions,
    dead_atoms,
    doubled_atoms,
    entropy_number,
    gram_of_atoms,
    participation_ratio,
)
from masa_vit.inspection.similarity import (
    Matching,
    cluster_layers,
    composed_similarity,
    cosine_similarity,
    match_atoms,
    principal_angles,
)
from masa_vit.inspection.spectra import (
    effective_rank,
    gaussian_values,
    head_norms,
    singular_values,
    stable_rank,
)
from masa_vit.inspection.summary import Summary, compare, summarize

__all__ = [
    'QUANTITIES', 'AtomAblation', 'AtomRecord', 'CanonicalForm', 'Effect', 'Matching',
    'ParameterCounts', 'ProjectionWeights', 'Quantity', 'Summary', 'ablate_atoms', 'atom_norms',
    'atom_overlaps', 'atom_shares', 'atom_use', 'attention_distance', 'attention_maps',
    'canonical_form', 'class_attention', 'cluster_layers', 'coefficients', 'compare',
    'composed_similarity', 'contributions', 'cosine_similarity', 'count_parameters', 'dead_atoms',
    'doubled_atoms', 'effective_rank', 'entropy_number', 'gaussian_values', 'gram_of_atoms',
    'head_norms', 'history_quantities', 'layer_cka', 'linear_cka', 'match_atoms',
    'participation_ratio', 'principal_angles', 'projection_weights', 'read_history', 'read_record',
    'record_of', 'remove_records', 'singular_values', 'stable_rank', 'summarize', 'summary_numbers',
    'write_record',
]  # fmt: skip
