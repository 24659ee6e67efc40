"""Pictures of matrices: coefficients, shares, similarities (needs matplotlib).

Signed values have a diverging colour map that is safe for colour-blind readers, centred at zero;
others a sequential one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIGNED, SEQUENTIAL = 'PuOr', 'cividis'
"""Colour maps."""

Limits = tuple[float, float]
"""Where the colours end."""


def plot_coefficients(
    coefs: Mapping[str, torch.Tensor], title: str = '', limit: float | None = None
) -> Figure:
    """Draw C of every projection as a picture: layers down, atoms across, one scale for all.

    Args:
        coefs: Projection name -> C (L, S), as `masa_vit.inspection.coefficients` returns.
        title: Of the figure.
        limit: Where the colours end; by default at the largest coefficient.

    Raises:
        ValueError: If `coefs` is empty.
    """
    if not coefs:
        raise ValueError('there are no coefficients to draw: nothing is shared in this model')
    limits = None if limit is None else (-limit, limit)
    return heatmaps(coefs, 'coefficient', 'atom', title, limits=limits)


def heatmaps(
    panels: Mapping[str, torch.Tensor],
    label: str,
    xlabel: str,
    title: str = '',
    *,
    signed: bool = True,
    square: bool = False,
    limits: Limits | None = None,
) -> Figure:
    """Draw matrices (L, n) side by side with one scale: layers down.

    Args:
        panels: Title of a panel -> matrix; nan is grey.
        label: What the colours mean.
        xlabel: What lies across.
        title: Of the figure.
        signed: The colours part at zero.
        square: Rows and columns are of one size.
        limits: Where the colours end; by default at the extreme values.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no screen needed

    depth, count = next(iter(panels.values())).shape
    width = min(max(1.4, 0.22 * count, 0.22 * depth if square else 0), 3.4)
    height = 1.2 + width * depth / count if square else max(2.4, 0.9 + 0.2 * depth)
    figure = Figure(figsize=(1.4 + len(panels) * width, height), layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    limits = limits or value_range(panels.values(), signed)
    for ax, (name, matrix) in zip(axes, panels.items(), strict=True):
        image = draw_matrix(ax, matrix, limits, signed=signed, square=square)
        ax.set(title=name.upper(), xlabel=xlabel)
    axes[0].set_ylabel('layer')
    figure.colorbar(image, ax=axes, label=label)
    if title:
        figure.suptitle(title)
    return figure


def value_range(matrices: Iterable[torch.Tensor], signed: bool) -> Limits:
    """Return where the colours of matrices end that have one scale; nan does not count."""
    values = torch.cat([matrix.double().flatten() for matrix in matrices])
    values = values[values.isfinite()]
    if signed:
        limit = float(values.abs().max()) if len(values) else 0.0
        return -(limit or 1.0), limit or 1.0
    return float(values.min()), float(values.max())


def draw_matrix(
    ax: Axes, matrix: torch.Tensor, limits: Limits, *, signed: bool = True, square: bool = False
) -> AxesImage:
    """Draw a matrix as a picture into a panel, with whole numbers on its axes."""
    from matplotlib import colormaps

    image = ax.imshow(
        matrix.numpy(),
        cmap=colormaps[SIGNED if signed else SEQUENTIAL].with_extremes(bad='0.85'),
        vmin=limits[0],
        vmax=limits[1],
        aspect='equal' if square else 'auto',
        interpolation='none',
    )
    rows, columns = matrix.shape
    ax.set_xticks(range(0, columns, -(-columns // 8)))
    ax.set_yticks(range(0, rows, -(-rows // 12)))
    return image
