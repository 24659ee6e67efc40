"""Pictures of the coefficients (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def plot_coefficients(
    coefs: Mapping[str, torch.Tensor], title: str | None = None, limit: float | None = None
) -> Figure:
    """Draw C of every projection as a picture: layers down, atoms across, one scale for all.

    Args:
        coefs: Projection name -> C (L, S), as `coefficients` returns.
        title: Title of the figure.
        limit: Where the colours end; by default at the largest coefficient.

    Raises:
        ValueError: If `coefs` is empty.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no screen needed
    from matplotlib.ticker import MaxNLocator

    if not coefs:
        raise ValueError('there are no coefficients to draw: nothing is shared in this model')
    limit = limit or max(float(coef.abs().max()) for coef in coefs.values()) or 1.0
    depth, num_atoms = next(iter(coefs.values())).shape
    figure = Figure(
        figsize=(1.2 + len(coefs) * max(1.1, 0.28 * num_atoms), max(2.4, 0.7 + 0.22 * depth)),
        layout='constrained',
    )
    axes = figure.subplots(1, len(coefs), sharey=True, squeeze=False)[0]
    for ax, (name, coef) in zip(axes, coefs.items(), strict=True):
        image = draw_signed(ax, coef, limit)
        ax.set(title=name.upper(), xlabel='atom')
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel('layer')
    figure.colorbar(image, ax=axes, label='coefficient')
    if title:
        figure.suptitle(title)
    return figure


def draw_signed(ax: Axes, matrix: torch.Tensor, limit: float) -> AxesImage:
    """Draw a matrix as a picture, in colours from -limit to limit that part at zero."""
    # PuOr is diverging and safe for colour-blind readers
    return ax.imshow(
        matrix.numpy(), cmap='PuOr', vmin=-limit, vmax=limit, aspect='auto', interpolation='nearest'
    )


def plot_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str | None = None
) -> Figure:
    """Draw training loss and a validation metric of several runs over their epochs.

    Args:
        histories: Name of a run -> a record per epoch, as `summary.json` holds under `history`.
        metric: Key in a record's `metrics`; without it the loss alone is drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = ['loss', metric] if metric else ['loss']
    figure = Figure(figsize=(4 * len(keys), 3), layout='constrained')
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    styles = ['-', '--', ':', '-.']  # tell the runs apart without colours, too
    for ax, key in zip(axes, keys, strict=True):
        for index, (name, history) in enumerate(histories.items()):
            points = [
                (record['epoch'], value)
                for record in history
                if (value := {**record.get('metrics', {}), **record}.get(key)) is not None
            ]
            if points:
                ax.plot(*zip(*points, strict=True), styles[index % len(styles)], label=name)
        ax.set(xlabel='epoch', ylabel='training loss' if key == 'loss' else key)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize='small')
    return figure
