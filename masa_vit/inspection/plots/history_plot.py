"""Pictures of how the sharing changed over training (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from masa_vit.inspection.plots.matrices import draw_matrix, plot_coefficients

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Mapping[str, Mapping[str, torch.Tensor]]
"""Projection -> quantity -> values (E, ...), as `history_quantities` returns it."""


def draw_history(history: History, epochs: Sequence[int]) -> Figure:
    """Draw C over the epochs, a panel per projection, with the effective number of atoms below.

    Above, every row is an atom of a layer, lines part the layers, and all panels have one scale. Below,
    the mean over the layers, and in grey from the least to the greatest of them.

    Args:
        history: Of E moments, with 'coefficients' (E, L, S) and 'effective_atoms' (E, L).
        epochs: E numbers, for the axis. All moments are drawn equally far apart.

    Raises:
        ValueError: If `history` is empty or of another number of moments.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    limit = _check(history, epochs)
    lines = max(len(each['coefficients'][0].flatten()) for each in history.values())
    figure = Figure(
        figsize=(1.2 + 2.4 * len(history), 2.2 + min(max(2.0, 0.075 * lines), 12.0)),
        layout='constrained',
    )
    axes = figure.subplots(
        2,
        len(history),
        sharex=True,
        squeeze=False,
        height_ratios=[max(2.0, min(0.06 * lines, 10.0)), 1],
    )
    most = max(float(each['effective_atoms'].max()) for each in history.values())
    for (name, each), upper, lower in zip(history.items(), *axes, strict=True):
        coef = each['coefficients']
        image = draw_matrix(upper, coef.flatten(1).T, (-limit, limit))
        upper.set(title=name.upper())
        _mark_layers(upper, *coef.shape[1:])
        _draw_effective(lower, each['effective_atoms'])
        lower.set(xlabel='epoch', ylim=(0, 1.05 * most or 1.0))
        lower.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        lower.xaxis.set_major_formatter(
            FuncFormatter(lambda at, _: f'{epochs[int(at)]}' if 0 <= at < len(epochs) else '')
        )
    axes[0, 0].set_ylabel('layer, atoms within')
    axes[1, 0].set_ylabel('effective\natoms')
    figure.colorbar(image, ax=axes[0], label='coefficient')
    return figure


def write_animation(
    history: History, epochs: Sequence[int], path: str | Path, fps: int = 5
) -> Path:
    """Write C over the epochs as a GIF: a frame per moment, layers by atoms, one scale for all.

    Args:
        history: Of E moments, with 'coefficients' (E, L, S).
        epochs: E numbers, for the titles.
        path: `.gif`; its folder is made when it does not exist.
        fps: Frames a second. The GIF begins anew after its last frame.

    Raises:
        ValueError: If `history` is empty or of another number of moments, or `path` is no `.gif`.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    limit = _check(history, epochs)
    path = Path(path)
    if path.suffix.lower() != '.gif':
        raise ValueError(
            f'the animation is a GIF: give a path that ends in .gif, not {str(path)!r}'
        )
    path.parent.mkdir(parents=True, exist_ok=True)

    first = {name: each['coefficients'][0] for name, each in history.items()}
    figure = plot_coefficients(first, title=f'epoch {max(epochs)}', limit=limit)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine('none')  # frames that stand still, and take a third of the time
    images = [ax.images[0] for ax in figure.axes if ax.images]
    writer = PillowWriter(fps=fps)
    with writer.saving(figure, str(path), dpi=100):
        for moment, epoch in enumerate(epochs):
            for image, each in zip(images, history.values(), strict=True):
                image.set_data(each['coefficients'][moment].numpy())
            figure.suptitle(f'epoch {epoch}')
            writer.grab_frame()
    return path


def _check(history: History, epochs: Sequence[int]) -> float:
    """Check the arguments; the largest coefficient, by which the colours go."""
    if not history:
        raise ValueError('there is no history to draw: nothing is shared in this run')
    for name, each in history.items():
        if len(each['coefficients']) != len(epochs) or not epochs:
            raise ValueError(
                f'the history of {name!r} has {len(each["coefficients"])} moments, `epochs` '
                f'{len(epochs)}; expected a number for each, and at least one'
            )
    return max(float(each['coefficients'].abs().max()) for each in history.values()) or 1.0


def _mark_layers(ax: Axes, depth: int, num_atoms: int) -> None:
    step = max(1, -(-depth // 12))  # no more than 12 numbers
    ax.set_yticks(
        [(layer + 0.5) * num_atoms - 0.5 for layer in range(0, depth, step)],
        [str(layer) for layer in range(0, depth, step)],
    )
    for layer in range(1, depth):
        ax.axhline(layer * num_atoms - 0.5, color='0.4', linewidth=0.5)


def _draw_effective(ax: Axes, numbers: torch.Tensor) -> None:
    moments = range(len(numbers))
    ax.fill_between(moments, numbers.amin(1).numpy(), numbers.amax(1).numpy(), color='0.8')
    # a run of one epoch is a point
    ax.plot(
        moments, numbers.mean(1).numpy(), color='black', marker='.' if len(numbers) == 1 else ''
    )
    ax.grid(alpha=0.3)
