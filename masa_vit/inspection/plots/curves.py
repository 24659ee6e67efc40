"""Pictures of trainings (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
