"""Figures as data, which `plotly_figures` draws for the page and `plots` with matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from masa_vit.inspection.quantities import QUANTITIES

Limits = tuple[float, float]
"""Where the colours end."""

_AXES = {'other_layer': 'layer', 'other_atom': 'atom', 'principal_atom': 'principal atom'}


@dataclass(frozen=True)
class Panel:
    """One quantity in one coordinate system."""

    quantity: str
    values: torch.Tensor
    """Of a heatmap (rows, columns), otherwise (lines, points)."""
    title: str = ''
    kind: str = 'heatmap'
    """'heatmap', 'lines', 'points' (not connected), 'bars' or 'tree' (lines, the root at the left)."""
    names: Sequence[str] = ()
    """Of the lines, for the legend."""
    places: Sequence[float] | torch.Tensor | None = None
    """Of the points (points,) or (lines, points). Default: 0, 1, ..."""
    references: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name -> values (points,) that are drawn dashed."""
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    """Of a heatmap. Default: 0, 1, ..."""
    x: str = ''
    y: str = ''
    """Titles of the axes. Default: those of the quantity."""
    limits: Limits | None = None

    @property
    def label(self) -> str:
        """The meaning of the colours or of the heights."""
        return QUANTITIES[self.quantity].label or self.quantity.replace('_', ' ')

    @property
    def signed(self) -> bool:
        """The colours part at zero."""
        return QUANTITIES[self.quantity].signed

    @property
    def axes(self) -> tuple[str, str]:
        """Titles of the x axis and the y axis."""
        *rows, last = (_AXES.get(axis, axis) for axis in QUANTITIES[self.quantity].axes)
        if self.kind == 'heatmap':
            return self.x or last, self.y or rows[-1]
        return self.x or last, '' if self.kind == 'tree' else self.label


@dataclass(frozen=True)
class Chart:
    """Panels that are drawn together; their heatmaps have one scale."""

    figure: str
    """Name of the place in the page."""
    panels: Sequence[Panel]
    choice: Mapping[str, str] = field(default_factory=dict)
    """Selector of the page -> its value for this chart."""
    columns: int = 4
    """Panels side by side, at most."""
    file: str = ''
    """Stem of the picture; charts of one stem are drawn below each other. '': none."""
    in_page: bool = True
    frames: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Name of a moment -> the values of the panels then."""

    @property
    def limits(self) -> Limits:
        """The scale of the heatmaps."""
        heatmaps = [panel for panel in self.panels if panel.kind == 'heatmap']
        if not heatmaps:
            return 0.0, 1.0
        values = [panel.values for panel in heatmaps]
        values += [each for moment in self.frames.values() for each in moment]
        return heatmaps[0].limits or value_range(values, heatmaps[0].signed)


def value_range(matrices: Iterable[torch.Tensor], signed: bool) -> Limits:
    """Return where the colours of matrices end that have one scale; nan does not count."""
    values = torch.cat([matrix.double().flatten() for matrix in matrices])
    values = values[values.isfinite()]
    if signed:
        limit = float(values.abs().max()) if len(values) else 0.0
        return -(limit or 1.0), limit or 1.0
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
