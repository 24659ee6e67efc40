"""The history of a run: a small record of its atoms at each epoch.

A record holds C and the Gram matrix of the atoms, of every projection that shares: a few kilobytes, and
all that `masa_vit.inspection.sharing_measures` needs. `CoefficientHook` writes one after every epoch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from masa_vit.inspection import sharing_measures
from masa_vit.inspection.projections import Source, coefficients, shared_atoms
from masa_vit.inspection.quantities import DICTIONARY, HISTORY, SHARED, Arrays, compute
from masa_vit.inspection.similarity import mean_off_diagonal
from masa_vit.inspection.summary import Sharing
from masa_vit.models import read_state_dict
from masa_vit.utils.digests import save_weights
from masa_vit.utils.staging import write_atomically
from masa_vit.utils.weight_files import read_safetensors

FOLDER = 'atoms'
"""Where in its work dir a run keeps its records."""

_FORMAT, _VERSION = 'masa_vit.atoms', '1'
_RECORD = r'epoch_(\d+)\.safetensors'
_CHECKPOINTS = (r'epoch_(\d+)\.pth', r'iter_(\d+)\.pth')

_OF_PROJECTION = {
    **{
        name: SHARED[name]
        for name in ('coefficients', 'contributions', 'shares', 'effective_atoms')
    },
    'composed_similarity': HISTORY['composed_similarity'],
    'canonical_energies': SHARED['canonical_energies'],
}
_OF_DICTIONARY = {name: DICTIONARY[name] for name in ('atom_use', 'atom_overlap')}


class AtomRecord(NamedTuple):
    """Coefficients and inner products of the atoms at one moment of a training."""

    epoch: int
    """Epochs trained; of an `iter_<n>.pth`, iterations."""
    coef: Mapping[str, torch.Tensor]
    """Projection -> C (L, S), float32, as `coefficients` returns it."""
    gram: Mapping[str, torch.Tensor]
    """Projection -> inner products of its atoms (S, S), float64."""
    dictionaries: Mapping[str, str]
    """Projection -> the name of its dictionary; several may have the same."""

    @property
    def is_finite(self) -> bool:
        """False once training has diverged."""
        return all(each.isfinite().all() for each in (*self.coef.values(), *self.gram.values()))


def record_of(source: Source, epoch: int) -> AtomRecord:
    """Return the record of a model, of any module that holds one, or of a state dict.

    Raises:
        ValueError: If nothing is shared in it, or several models in it share.
    """
    coef = coefficients(source)
    if not coef:
        raise ValueError(
            'nothing is shared in this model: it is dense, and has no atoms with a history'
        )
    atoms, dictionary_of = shared_atoms(source, coef)
    grams = {key: sharing_measures.gram_of_atoms(each) for key, each in atoms.items()}
    return AtomRecord(
        epoch, coef, {name: grams[dictionary_of[name]] for name in coef}, dictionary_of
    )


def write_record(record: AtomRecord, folder: str | Path) -> Path:
    """Write a record to `folder/epoch_<n>.safetensors`: complete, or not at all.

    The file holds the tensors `coef.<projection>` and `gram.<projection>`, and the metadata `format`,
    `version`, `epoch` and `dictionaries` (JSON). A file of the same epoch is replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f'coef.{name}': coef.float() for name, coef in record.coef.items()}
    tensors |= {f'gram.{name}': gram.double() for name, gram in record.gram.items()}
    # projections may share a matrix, and safetensors refuses shared memory
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    metadata = {
        'format': _FORMAT,
        'version': _VERSION,
        'epoch': str(record.epoch),
        'dictionaries': json.dumps(record.dictionaries),
    }
    path = folder / f'epoch_{record.epoch}.safetensors'
    write_atomically(path, save_weights(tensors, metadata))
    return path


def read_record(path: str | Path) -> AtomRecord:
    """Read what `write_record` wrote.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is truncated, no record, or of a version that this package does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'record {str(path)!r} does not exist')
    try:
        tensors, metadata = read_safetensors(path)
    except ValueError as error:
        raise ValueError(f'{error}. Remove it: the other epochs can be read without it.') from None
    if metadata.get('format') != _FORMAT:
        raise ValueError(
            f'{str(path)!r} is not a record of atoms: metadata format={metadata.get("format")!r}, '
            f'expected {_FORMAT!r}'
        )
    if metadata.get('version') != _VERSION:
        raise ValueError(
            f'record {str(path)!r} has version {metadata.get("version")!r}, this masa_vit reads '
            f'{_VERSION!r}: read it with the masa_vit that wrote it'
        )
    # safetensors sorts by name; all else has q, k, v, o
    names = sorted({key.partition('.')[2] for key in tensors}, key='qkvo'.find)
    coef, gram = (
        {name: tensors[f'{kind}.{name}'] for name in names if f'{kind}.{name}' in tensors}
        for kind in ('coef', 'gram')
    )
    epoch = metadata.get('epoch', '')
    dictionaries = json.loads(metadata.get('dictionaries', '{}'))
    fits = [*coef] == [*gram] == names and all(
        coef[name].ndim == 2 and gram[name].shape == 2 * coef[name].shape[1:] for name in names
    )
    if not (epoch.isdecimal() and names and fits and {*names} == {*dictionaries}):
        raise ValueError(
            f'record {str(path)!r} is incomplete: expected an epoch, and coef.<projection> (L, S) with '
            f'gram.<projection> (S, S); it has the epoch {epoch!r} and '
            f'{ {key: tuple(tensor.shape) for key, tensor in tensors.items()} }'
        )
    return AtomRecord(int(epoch), coef, gram, dictionaries)


def remove_records(folder: str | Path, after: int) -> None:
    """Remove the records of epochs after `after`: of a run that was taken up before them, or anew."""
    for epoch, path in _numbered(Path(folder), _RECORD):
        if epoch > after:
            path.unlink(missing_ok=True)


def read_history(work_dir: str | Path) -> list[AtomRecord]:
    """Read how the atoms of a run changed, in the order of its epochs.

    Args:
        work_dir: The run's folder. Its records are read (`atoms/epoch_<n>.safetensors`); a run without
            records has its checkpoints, as far as they are kept: `epoch_<n>.pth`, else
            `iter_<n>.pth`, counted in iterations then. The folder of the records also works.
            Records are of the weights that train, checkpoints of a run with `EMAHook` hold their
            average.

    Raises:
        FileNotFoundError: If the folder does not exist, or has none of these files.
        ValueError: If the run shares nothing, if a file is broken, or if the files are of several runs.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f'work dir {str(folder)!r} does not exist, or is not a folder')
    files = _numbered(folder / FOLDER, _RECORD) or _numbered(folder, _RECORD)
    if files:
        records = sorted((read_record(path) for _, path in files), key=lambda record: record.epoch)
    else:
        files = next(filter(None, (_numbered(folder, each) for each in _CHECKPOINTS)), [])
        records = [_record_of_file(path, number) for number, path in files]
    if not records:
        raise FileNotFoundError(
            f'{str(folder)!r} has no history: looked for {FOLDER}/epoch_*.safetensors (CoefficientHook '
            'writes them while a model with shared weights trains), epoch_*.safetensors, epoch_*.pth '
            'and iter_*.pth. Give the --work-dir of a training run.'
        )
    shapes = [{name: tuple(coef.shape) for name, coef in each.coef.items()} for each in records]
    for index, record in enumerate(records):
        if index and record.epoch == records[index - 1].epoch:
            raise ValueError(
                f'{str(folder)!r} has two records of epoch {record.epoch}: a file was renamed. Remove '
                'the wrong one.'
            )
        if shapes[index] != shapes[0]:
            raise ValueError(
                f'{str(folder)!r} holds files of several runs: (L, S) is {shapes[0]} in epoch '
                f'{records[0].epoch} and {shapes[index]} in epoch {record.epoch}. Keep those of one run.'
            )
    return records


def _record_of_file(path: Path, number: int) -> AtomRecord:
    state = read_state_dict(path)
    try:
        return record_of(state, number)
    except ValueError as error:
        raise ValueError(f'checkpoint {str(path)!r}: {error}') from error


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return sorted(
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := re.fullmatch(pattern, path.name))
    )


def history_quantities(records: Sequence[AtomRecord]) -> dict[str, dict[str, torch.Tensor]]:
    """Compute the use of the atoms by the layers at each of E moments.

    Args:
        records: E >= 1 of one run, as `read_history` returns them.

    Returns:
        Projection -> quantity -> values (E, ...), float64, as `QUANTITIES` describes them. In one run
        the atoms keep their places and signs: coefficients of one epoch compare with the next ones.
        'atom_use' and 'atom_overlap' are of the dictionary, with all projections that use it;
        'canonical_energies' (E, R) have zeros up to R = min(L, S).

    Raises:
        ValueError: If there are no records, or one holds numbers that are not finite.
    """
    if not records:
        raise ValueError('records is empty: a history needs at least one epoch')
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
