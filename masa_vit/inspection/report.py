"""A report: the quantities of some models, as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from masa_vit import __version__
from masa_vit.inspection.quantities import QUANTITIES
from masa_vit.inspection.summary import Summary

SCHEMA = 1
"""Of the JSON document; increased when readers of the old one would fail."""

Arrays = Mapping[str, torch.Tensor]


class Comparison(NamedTuple):
    """The first of two models compared with the second."""

    first: str
    second: str
    projections: Mapping[str, Arrays]


class History(NamedTuple):
    """Quantities over the epochs of a run: projection -> name -> array (epochs, ...).

    Under the names of `QUANTITIES`, each of one projection, from the atoms only, without residuals.
    """

    run: str
    epochs: Sequence[int]
    projections: Mapping[str, Arrays]


class Scope(NamedTuple):
    """Arrays of a report, and the model and part to which they belong."""

    model: str
    """Name of the model; of a comparison, 'first vs second'."""
    of: str
    """Projection, name of a dictionary, or '' for the model."""
    arrays: Arrays
    indices: Sequence[int] | None = None
    """Places of the singular values along the axis 'index'."""


@dataclass
class Report:
    """The quantities of some models."""

    models: dict[str, Summary] = field(default_factory=dict)
    """Name -> quantities."""
    comparisons: list[Comparison] = field(default_factory=list)
    history: History | None = None
    pictures: dict[str, list[str]] = field(default_factory=dict)
    """Name of a model -> the images whose attention is shown, as `data:` URLs."""
    notes: dict[str, str] = field(default_factory=dict)
    """Name of a model -> a note for the reader."""

    def scopes(self) -> Iterator[Scope]:
        """All arrays, but for the history."""
        for name, summary in self.models.items():
            for of, arrays in summary.projections.items():
                yield Scope(name, of, arrays, summary.indices[of])
            for key, of_atoms in summary.dictionaries.items():
                drawing = next(name for name, of in summary.dictionary_of.items() if of == key)
                yield Scope(name, key, of_atoms, summary.indices[drawing])
            if summary.images:
                yield Scope(name, '', summary.images)
        for first, second, projections in self.comparisons:
            for of, compared in projections.items():
                yield Scope(f'{first} vs {second}', of, compared)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document that `docs/inspect.md` describes."""
        return {
            'schema': SCHEMA,
            'masa_vit': __version__,
            'quantities': {name: _quantity(name) for name in self._names()},
            'models': {name: _model(summary) for name, summary in self.models.items()},
            'comparisons': [
                {'first': first, 'second': second, 'projections': _lists(projections)}
                for first, second, projections in self.comparisons
            ],
            'history': None
            if self.history is None
            else {
                'run': self.history.run,
                'epochs': list(self.history.epochs),
                'projections': _lists(self.history.projections),
            },
            'pictures': self.pictures,
            'notes': self.notes,
        }

    def _names(self) -> list[str]:
        used = {name for scope in self.scopes() for name in scope.arrays}
        if self.history is not None:
            used |= {name for of in self.history.projections.values() for name in of}
        return [name for name in QUANTITIES if name in used]


def _quantity(name: str) -> dict[str, Any]:
    quantity = QUANTITIES[name]
    return {
        'axes': list(quantity.axes),
        'invariant': quantity.invariant,
        'text': quantity.text,
    }


def _model(summary: Summary) -> dict[str, Any]:
    return {
        'depth': summary.depth,
        'num_heads': summary.num_heads,
        'attention_parameters': summary.attention_parameters,
        'dense_attention_parameters': summary.dense_attention_parameters,
        'projections': _lists(summary.projections),
        'dictionaries': _lists(summary.dictionaries),
        'images': _lists({'': summary.images})[''],
        'dictionary_of': summary.dictionary_of,
        'indices': summary.indices,
        'dead_atoms': summary.dead,
        'doubled_atoms': summary.doubled,
    }


def _lists(scopes: Mapping[str, Arrays]) -> dict[str, dict[str, Any]]:
    return {
        of: {name: value.tolist() for name, value in arrays.items()}
        for of, arrays in scopes.items()
    }
