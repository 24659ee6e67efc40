"""Pictures of the coefficients (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_coefficients(coefs: Mapping[str, torch.Tensor], title: str | None = None) -> Figure:
    """Draw C of every projection as a picture: layers down, atoms across, one scale for all.

    Args:
        coefs: Projection name -> C (L, S), as `coefficients` returns.
        title: Title of the figure.

    Raises:
        ValueError: If `coefs` is empty.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure  # not pyplot: no global state, no screen needed
    from matplotlib.ticker import MaxNLocator

    if not coefs:
        raise ValueError('there are no coefficients to draw: nothing is shared in this model')
    limit = max(float(coef.abs().max()) for coef in coefs.values()) or 1.0
    depth, num_atoms = next(iter(coefs.values())).shape
    figure = Figure(
        figsize=(1.2 + len(coefs) * max(1.1, 0.28 * num_atoms), max(2.4, 0.7 + 0.22 * depth)),
        layout='constrained',
    )
    axes = figure.subplots(1, len(coefs), sharey=True, squeeze=False)[0]
    for ax, (name, coef) in zip(axes, coefs.items(), strict=True):
        # PuOr is diverging and safe for colour-blind readers
        image = ax.imshow(
            coef.numpy(), cmap='PuOr', norm=TwoSlopeNorm(0, -limit, limit), aspect='auto'
        )
        ax.set(title=name.upper(), xlabel='atom')
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel('layer')
    figure.colorbar(image, ax=axes, label='coefficient')
    if title:
        figure.suptitle(title)
    return figure
