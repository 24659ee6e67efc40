"""Pictures for papers and slides (extra `inspect`: matplotlib).

Signed values have a diverging colour map that is safe for colour-blind readers, centred at zero;
others a sequential one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from masa_vit.inspection.chart_contents import report_charts
from masa_vit.inspection.charts import Chart, Limits, Panel
from masa_vit.inspection.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIGNED, SEQUENTIAL = 'PuOr', 'cividis'
"""Colour maps."""

_STYLES = ('-', '--', '-.', ':')  # distinguish lines without colours, too
_MARKERS = 'osD^v'

History = Mapping[str, Mapping[str, torch.Tensor]]
"""Projection -> quantity -> values (E, ...), as `history_quantities` returns it."""


def draw_charts(charts: Sequence[Chart], title: str = '') -> Figure:
    """Draw charts below each other, the panels of each side by side."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no screen needed

    grids = [(chart, min(chart.columns, len(chart.panels))) for chart in charts]
    heights = [-(-len(chart.panels) // columns) * _height(chart) for chart, columns in grids]
    width = max(sum(map(_width, chart.panels[:columns])) for chart, columns in grids)
    figure = Figure(figsize=(1.8 + width, 0.4 + sum(heights)), layout='constrained')
    parts = figure.subfigures(len(charts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (chart, columns) in zip(parts, grids, strict=True):
        rows = -(-len(chart.panels) // columns)
        axes = part.subplots(rows, columns, squeeze=False).flatten()
        images = {
            ax: image
            for ax, panel in zip(axes, chart.panels, strict=False)
            if (image := _draw_panel(ax, panel, chart.limits)) is not None
        }
        for index, ax in enumerate(axes):
            if ax in images and index % columns:
                ax.set_ylabel('')
        for ax in axes[len(chart.panels) :]:
            ax.set_visible(False)
        if images:
            panel = next(panel for panel in chart.panels if panel.kind == 'heatmap')
            part.colorbar([*images.values()][-1], ax=[*images], label=panel.label)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _width(panel: Panel) -> float:
    if panel.kind != 'heatmap':
        return 3.4
    rows, columns = panel.values.shape
    if panel.quantity == 'class_attention':
        return max(2.5, min(12.0, 12.0 * columns / rows))
    return min(max(1.6, 0.22 * columns), 10.0)


def _height(chart: Chart) -> float:
    rows = [len(panel.values) for panel in chart.panels if panel.kind == 'heatmap']
    return max(2.6, min(0.9 + 0.2 * max(rows, default=0), 12.0))


def _draw_panel(ax: Axes, panel: Panel, limits: Limits) -> AxesImage | None:
    """Draw a panel; return the picture of a heatmap, for the colour bar."""
    from matplotlib.ticker import MaxNLocator

    x, y = panel.axes
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(panel.title, fontsize='medium', parse_math=False)  # a name may have a $
    if panel.kind == 'heatmap':
        image = draw_matrix(ax, panel.values, limits, signed=panel.signed)
        for labels, set_ticks in (
            (panel.column_labels, ax.set_xticks), (panel.row_labels, ax.set_yticks)
        ):  # fmt: skip
            if named := {place: label for place, label in enumerate(labels) if label}:
                set_ticks([*named], [*named.values()], fontsize='small')
        if panel.quantity == 'class_attention':
            ax.set_aspect('equal')
        return image
    places = range(panel.values.shape[1]) if panel.places is None else list(panel.places)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.kind == 'bars':
        ax.bar(places, panel.values[0].numpy(), color='0.4')
    else:
        _draw_lines(ax, panel, places)
    for name, values in panel.references.items():
        ax.plot(places, values.numpy(), 'k--', linewidth=1.2, label=name)
    ax.grid(alpha=0.3)
    if bool((panel.values < 0).any()):
        ax.axhline(0, color='0.4', linewidth=0.8)
    else:
        ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    if panel.names or panel.references:
        ax.legend(fontsize='x-small')
    return None


def _draw_lines(ax: Axes, panel: Panel, places: Sequence[float]) -> None:
    """Draw lines of distinct styles if they are few, by a sequence of colours otherwise."""
    from matplotlib import colormaps

    count = len(panel.values)
    for index, values in enumerate(panel.values.numpy()):
        named = count <= 5 or index in (0, count - 1)  # the sequence explains the others
        style: dict[str, Any] = {'label': panel.names[index] if named else ''}
        if count > 5:
            style |= {'color': colormaps[SEQUENTIAL](index / (count - 1)), 'linewidth': 1}
        else:
            style |= {'linestyle': _STYLES[index % 4], 'markersize': 3}
            style['marker'] = _MARKERS[index] if len(places) <= 32 else ''
        if panel.kind == 'points':
            style |= {'linestyle': '', 'marker': 'o'}
        ax.plot(places, values, **style)


def draw_matrix(
    ax: Axes, matrix: torch.Tensor, limits: Limits, *, signed: bool = True
) -> AxesImage:
    """Draw a matrix as a picture into a panel, with whole numbers on its axes; nan is grey."""
    from matplotlib import colormaps

    image = ax.imshow(
        matrix.numpy(),
        cmap=colormaps[SIGNED if signed else SEQUENTIAL].with_extremes(bad='0.85'),
        vmin=limits[0],
        vmax=limits[1],
        aspect='auto',
        interpolation='none',
    )
    rows, columns = matrix.shape
    ax.set_xticks(range(0, columns, -(-columns // 8)))
    ax.set_yticks(range(0, rows, -(-rows // 12)))
    return image


def report_pictures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield names for files, and figures: those of several models or comparisons are numbered."""
    groups: dict[tuple[str, str], list[Chart]] = {}
    for chart in report_charts(report):
        if chart.file:
            of = chart.choice.get('model') or chart.choice['pair']
            groups.setdefault((chart.file, of), []).append(chart)
    pairs = [f'{first} vs {second}' for first, second, _ in report.comparisons]
    for (stem, of), charts in groups.items():
        names = pairs if stem == 'comparison' else [*report.models]
        number = f'_{names.index(of) + 1}' if len(names) > 1 else ''
        yield f'{stem}{number}', draw_charts(charts, of)


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
    panels = [
        Panel('coefficients', coef, name.upper(), limits=limits) for name, coef in coefs.items()
    ]
    return draw_charts([Chart('coefficients', panels, columns=len(panels))], title)


def plot_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str | None = None
) -> Figure:
    """Draw training loss and a validation metric of several runs over their epochs.

    Args:
        histories: Name of a run -> a record per epoch, as `summary.json` holds under `history`.
        metric: Key in a record's `metrics`; without it only the loss is drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = ['loss', metric] if metric else ['loss']
    figure = Figure(figsize=(4 * len(keys), 3), layout='constrained')
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for ax, key in zip(axes, keys, strict=True):
        for index, (name, history) in enumerate(histories.items()):
            points = [
                (record['epoch'], value)
                for record in history
                if (value := {**record.get('metrics', {}), **record}.get(key)) is not None
            ]
            if points:
                ax.plot(*zip(*points, strict=True), _STYLES[index % 4], label=name)
        ax.set(xlabel='epoch', ylabel='training loss' if key == 'loss' else key)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize='small')
    return figure


def draw_history(history: History, epochs: Sequence[int]) -> Figure:
    """Draw C over the epochs, a panel per projection, with the effective number of atoms below.

    Above, every row is an atom of a layer, lines separate the layers, and all panels have one scale.
    Below, the mean over the layers, and in grey from the least to the greatest of them.

    Args:
        history: Of E moments, with 'coefficients' (E, L, S) and 'effective_atoms' (E, L).
        epochs: E numbers, for the axis. All moments are drawn equally far apart.

    Raises:
        ValueError: If `history` is empty or of another number of moments.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    limit = _largest_coefficient(history, epochs)
    rows = max(each['coefficients'][0].numel() for each in history.values())
    height = max(2.0, min(0.07 * rows, 12.0))
    figure = Figure(figsize=(1.2 + 2.4 * len(history), 2.2 + height), layout='constrained')
    axes = figure.subplots(2, len(history), sharex=True, squeeze=False, height_ratios=[height, 1])
    most = max(float(each['effective_atoms'].max()) for each in history.values())
    for (name, each), upper, lower in zip(history.items(), *axes, strict=True):
        coef = each['coefficients']
        image = draw_matrix(upper, coef.flatten(1).T, (-limit, limit))  # (L S, E)
        upper.set(title=name.upper())
        _mark_layers(upper, *coef.shape[1:])
        numbers, moments = each['effective_atoms'], range(len(epochs))
        lower.fill_between(moments, numbers.amin(1).numpy(), numbers.amax(1).numpy(), color='0.8')
        marker = '.' if len(numbers) == 1 else ''  # a run of one epoch is a point
        lower.plot(moments, numbers.mean(1).numpy(), color='black', marker=marker)
        lower.grid(alpha=0.3)
        lower.set(xlabel='epoch', ylim=(0, 1.05 * most or 1.0))
        lower.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        lower.xaxis.set_major_formatter(
            FuncFormatter(lambda at, _: f'{epochs[int(at)]}' if 0 <= at < len(epochs) else '')
        )
    axes[0, 0].set_ylabel('layer, atoms within')
    axes[1, 0].set_ylabel('effective\natoms')
    figure.colorbar(image, ax=axes[0], label='coefficient')
    return figure


def _mark_layers(ax: Axes, depth: int, num_atoms: int) -> None:
    shown = range(0, depth, max(1, -(-depth // 12)))  # no more than 12 numbers
    ax.set_yticks([(layer + 0.5) * num_atoms - 0.5 for layer in shown], [*map(str, shown)])
    for layer in range(1, depth):
        ax.axhline(layer * num_atoms - 0.5, color='0.4', linewidth=0.5)


def write_animation(
    history: History, epochs: Sequence[int], path: str | Path, fps: int = 5
) -> Path:
    """Write C over the epochs as a GIF: a frame per moment, layers by atoms, one scale for all.

    Args:
        history: Of E moments, with 'coefficients' (E, L, S).
        epochs: E numbers, for the titles.
        path: `.gif`; its folder is created if it does not exist.
        fps: Frames a second. The GIF repeats.

    Raises:
        ValueError: If `history` is empty or of another number of moments, or `path` is no `.gif`.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    limit = _largest_coefficient(history, epochs)
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
    figure.set_layout_engine('none')  # a fixed layout: drawing takes a third of the time
    images = [ax.images[0] for ax in figure.axes if ax.images]
    writer = PillowWriter(fps=fps)
    with writer.saving(figure, str(path), dpi=100):
        for moment, epoch in enumerate(epochs):
            for image, each in zip(images, history.values(), strict=True):
                image.set_data(each['coefficients'][moment].numpy())
            figure.suptitle(f'epoch {epoch}')
            writer.grab_frame()
    return path


def _largest_coefficient(history: History, epochs: Sequence[int]) -> float:
    """Return where the colours end; raise ValueError if the arguments do not fit."""
    if not history:
        raise ValueError('there is no history to draw: nothing is shared in this run')
    for name, each in history.items():
        if len(each['coefficients']) != len(epochs) or not epochs:
            raise ValueError(
                f'the history of {name!r} has {len(each["coefficients"])} moments, `epochs` '
                f'{len(epochs)}; expected a number for each, and at least one'
            )
    return max(float(each['coefficients'].abs().max()) for each in history.values()) or 1.0
