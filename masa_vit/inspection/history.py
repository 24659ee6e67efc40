"""How the sharing changed over training: what follows from the records of its epochs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from masa_vit.inspection import sharing_measures
from masa_vit.inspection.quantities import DICTIONARY, HISTORY, SHARED, Arrays, compute
from masa_vit.inspection.records import AtomRecord
from masa_vit.inspection.similarity import mean_off_diagonal
from masa_vit.inspection.summary import Sharing

_OF_PROJECTION = {
    **{
        name: SHARED[name]
        for name in ('coefficients', 'contributions', 'shares', 'effective_atoms')
    },
    'composed_similarity': HISTORY['composed_similarity'],
    'canonical_energies': SHARED['canonical_energies'],
}
_OF_DICTIONARY = {name: DICTIONARY[name] for name in ('atom_use', 'atom_overlap')}


def history_quantities(records: Sequence[AtomRecord]) -> dict[str, dict[str, torch.Tensor]]:
    """Compute how the layers used the atoms at each of E moments.

    Args:
        records: E >= 1 of one run, as `read_history` returns them.

    Returns:
        Projection -> quantity -> values, float64:

        - 'coefficients' (E, L, S): C. Not invariant to scale. In one run the atoms keep their places
          and signs: compare one epoch with the next, but not one atom with another.
        - invariant to scale: 'contributions' (E, L, S), 'shares' (E, L, S), 'effective_atoms' (E, L),
          the participation ratio of the squared contributions, 'atom_use' (E, S), 'atom_overlap'
          (E, S, S). Atoms are those of the dictionary, with all projections that draw on it.
        - invariant to mixing: 'composed_similarity' (E, L, L), the cosines of the weights composed of
          the atoms, and 'canonical_energies' (E, R), with zeros up to R = min(L, S).

        What they are, and what invariant means: `masa_vit.inspection.sharing_measures`.

    Raises:
        ValueError: If there are no records, or one holds numbers that are not finite.
    """
    if not records:
        raise ValueError('there are no records: a history needs at least one epoch')
    for record in records:
        if not record.is_finite:
            raise ValueError(
                f'the record of epoch {record.epoch} holds numbers that are not finite: training had '
                'diverged. Give the records before it.'
            )
    history = {}
    for name in records[0].coef:
        moments = [_quantities(record, name) for record in records]
        history[name] = {
            key: torch.stack([moment[key] for moment in moments]) for key in moments[0]
        }
    return history


def _quantities(record: AtomRecord, name: str) -> Arrays:
    coef, gram = record.coef[name].double(), record.gram[name]
    key = record.dictionaries[name]
    users = [record.coef[user] for user, of in record.dictionaries.items() if of == key]
    found = compute(_OF_PROJECTION, Sharing(coef, gram))
    energies = found['canonical_energies']  # (R,), and R may change from epoch to epoch
    found['canonical_energies'] = F.pad(energies, (0, min(coef.shape) - len(energies)))
    return found | compute(_OF_DICTIONARY, Sharing(torch.cat(users), gram))


def summary_numbers(record: AtomRecord) -> dict[str, dict[str, float]]:
    """Sum up one moment: projection -> number -> value.

    'effective_atoms': mean over the layers. 'dead_atoms', 'doubled_atoms': how many atoms, and how
    many pairs. 'layer_similarity': mean cosine of two layers' composed weights, 0 for a single layer.
    All are invariant to scale, the last one to mixing, too.
    """
    numbers = {}
    for name in record.coef:
        found = _quantities(record, name)
        numbers[name] = {
            'effective_atoms': float(found['effective_atoms'].mean()),
            'dead_atoms': float(len(sharing_measures.dead_atoms(found['atom_use']))),
            'doubled_atoms': float(len(sharing_measures.doubled_atoms(found['atom_overlap']))),
            'layer_similarity': mean_off_diagonal(found['composed_similarity']),
        }
    return numbers
