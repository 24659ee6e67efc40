"""Charts as figures of plotly, for the page (extra `inspect`)."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from masa_vit.inspection.charts import Chart, Limits, Panel

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')  # Okabe and Ito
_SYMBOLS = ('circle', 'square', 'diamond', 'triangle-up', 'cross', 'x')
_WIDTH = 1050
"""Of the panels of a chart on a wide screen, pixels."""
_GAP = 90
"""Between rows of panels, for their titles, pixels."""
_TOP, _BOTTOM, _LEGEND, _SLIDER = 40, 50, 60, 110
_FADED = '#98a3ad'

TEMPLATE = {
    'layout': {
        'font': {'family': 'system-ui, sans-serif', 'size': 13, 'color': '#1c2126'},
        'colorway': _COLOURS,
        'dragmode': False,
        'hovermode': 'closest',
        'bargap': 0.3,
        'margin': {'l': 80, 'r': 20, 't': _TOP, 'b': _BOTTOM},
        'legend': {'orientation': 'h', 'x': 0, 'y': 0, 'yref': 'container', 'yanchor': 'bottom'},
        'xaxis': {'gridcolor': '#eceff2', 'linecolor': _FADED, 'zeroline': False},
        'yaxis': {'gridcolor': '#eceff2', 'linecolor': _FADED, 'zeroline': False},
        'plot_bgcolor': '#fff',
    }
}
"""The common part of all figures; the page adds it to each."""


def draw(chart: Chart) -> dict[str, Any]:
    """Return data, layout and frames of the figure that shows a chart."""
    from plotly.subplots import make_subplots

    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    heights = [
        max(_height(panel, columns) for panel in chart.panels[row * columns :][:columns])
        for row in range(rows)
    ]
    inner = sum(heights) + _GAP * (rows - 1)
    figure = make_subplots(
        rows,
        columns,
        row_heights=heights,
        subplot_titles=[_plain(panel.title) for panel in chart.panels],
        horizontal_spacing=min(0.07, 0.25 / columns),
        vertical_spacing=_GAP / inner if rows > 1 else 0,
    )
    figure.layout.template = {}  # the page has it once for all figures
    shown: set[str] = set()
    heights_of: dict[str, str] = {}  # quantity of bars -> the y axis that its panels share
    for index, panel in enumerate(chart.panels):
        place = {'row': index // columns + 1, 'col': index % columns + 1}
        for trace in _traces(panel, columns, chart.limits):
            trace.showlegend = bool(trace.name) and trace.name not in shown
            shown.add(trace.name)
            figure.add_trace(trace, **place)
        figure.update_xaxes(**_x_axis(panel), **place)
        figure.update_yaxes(**_y_axis(panel, first=index % columns == 0), **place)
        if panel.kind == 'bars':
            axis = f'y{index + 1 if index else ""}'
            shared = heights_of.setdefault(panel.quantity, axis)
            title = panel.label if shared == axis else ''
            figure.update_yaxes(matches=shared, title_text=title, **place)
    if any(panel.kind == 'heatmap' for panel in chart.panels):
        figure.update_layout(coloraxis=_colour_axis(chart, heights[0], inner))
    bottom = _BOTTOM + (_LEGEND if any(shown) else 0)
    figure.update_layout(height=inner + _TOP + bottom, margin_b=bottom)
    if chart.panels[0].quantity == 'singular_values':
        figure.update_layout(updatemenus=[_scale_menu(len(chart.panels))])
    if chart.frames:
        _animate(figure, chart)
    return dict(figure.to_plotly_json())


def _plain(text: str) -> str:
    """A name as plotly shows it: it reads tags and entities in texts."""
    return html.escape(text, quote=False)


def _height(panel: Panel, columns: int) -> float:
    if panel.kind != 'heatmap':
        return 300
    rows, width = panel.values.shape
    if panel.quantity == 'class_attention':
        return min(260, _WIDTH / columns * 0.8 * rows / width)
    return max(200, min(520, rows * 26))


def _traces(panel: Panel, columns: int, limits: Limits) -> Iterator[Any]:
    from plotly import graph_objects as go

    if panel.kind == 'heatmap':
        yield _heatmap(panel, columns, limits)
        return
    values = panel.values.float().numpy()
    count = len(values)
    at = (
        [*range(values.shape[1])]
        if panel.places is None
        else torch.as_tensor(panel.places).tolist()
    )
    x = panel.axes[0]
    for index, line in enumerate(values):
        name = panel.names[index] if panel.names else ''
        if panel.kind == 'bars':
            hover = f'{x} %{{x}}: <b>%{{y:.4g}}</b><extra></extra>'
            yield go.Bar(x=at, y=line, name=name, marker_color=_COLOURS[0], hovertemplate=hover)
        elif panel.kind == 'tree':
            hover = 'joined at %{x:.4g}<extra></extra>'
            yield go.Scatter(
                x=at[index],
                y=line,
                mode='lines',
                name='',
                line_color='#1c2126',
                hovertemplate=hover,
            )
        else:
            colour = _colour(index, count)
            yield go.Scatter(
                x=at, y=line, name=_plain(name), legendgroup=_plain(name),
                mode='markers' if panel.kind == 'points' else 'lines+markers',
                line={'color': colour, 'width': 2},
                marker={'color': colour, 'size': 7 if count <= len(_COLOURS) else 4,
                        'symbol': _SYMBOLS[index % len(_SYMBOLS)]},
                hovertemplate=f'{_plain(name)}, {x} %{{x}}: <b>%{{y:.4g}}</b><extra></extra>',
            )  # fmt: skip
    for name, reference in panel.references.items():
        yield go.Scatter(
            x=at, y=reference.float().numpy(), name=name, legendgroup=name, mode='lines',
            line={'color': '#000', 'width': 2, 'dash': 'dash'},
            hovertemplate=f'{name}: <b>%{{y:.4g}}</b><extra></extra>',
        )  # fmt: skip


def _heatmap(panel: Panel, columns: int, limits: Limits) -> go.Heatmap:
    from plotly import graph_objects as go

    rows, width = panel.values.shape
    x, y = panel.axes
    # numbers in the cells: if they fit, and two decimals distinguish them
    readable = _WIDTH / columns / width > 50 and rows <= 24 and max(map(abs, limits)) > 0.1
    return go.Heatmap(
        z=panel.values.float().numpy(),
        x=[*panel.column_labels] or None,
        y=[*panel.row_labels] or None,
        coloraxis='coloraxis',
        xgap=0 if panel.quantity == 'class_attention' else 1,
        ygap=0 if panel.quantity == 'class_attention' else 1,
        texttemplate='%{z:.2f}' if readable else None,
        hovertemplate=f'{y} %{{y}}, {x} %{{x}}<br><b>%{{z:.4g}}</b><extra></extra>',
        name='',
    )


def _colour(index: int, count: int) -> str:
    """Distinct colours for few lines, a sequence for many (layers)."""
    from plotly.colors import sample_colorscale

    if count <= len(_COLOURS):
        return _COLOURS[index]
    return str(sample_colorscale('Cividis', index / (count - 1))[0])


def _x_axis(panel: Panel) -> dict[str, Any]:
    axis: dict[str, Any] = {'title': {'text': _plain(panel.axes[0]), 'standoff': 6}}
    if panel.column_labels:
        axis |= {'type': 'category', 'showgrid': False}
    elif panel.kind == 'heatmap':
        axis |= {'dtick': max(1, -(-panel.values.shape[1] // 8)), 'showgrid': False}
    elif panel.kind == 'tree':
        axis |= {'autorange': 'reversed', 'rangemode': 'tozero'}
    elif panel.places is None:
        axis['dtick'] = max(1, -(-panel.values.shape[1] // 8))
    if panel.quantity == 'class_attention':
        axis |= {'visible': False, 'constrain': 'domain'}
    return axis


def _y_axis(panel: Panel, first: bool) -> dict[str, Any]:
    title = panel.axes[1] if first or panel.kind != 'heatmap' else ''
    axis: dict[str, Any] = {'title': {'text': _plain(title), 'standoff': 6}}
    if panel.kind == 'tree':
        return {'range': [len(panel.values) + 0.5, -0.5], 'visible': False}
    if panel.kind != 'heatmap':
        return axis | {'rangemode': 'tozero'}
    axis |= {'autorange': 'reversed', 'showgrid': False}
    if panel.quantity == 'class_attention':
        return axis | {'visible': False, 'scaleanchor': 'x', 'constrain': 'domain'}
    if panel.row_labels:
        return axis | {'type': 'category'}
    return axis | {'dtick': max(1, -(-panel.values.shape[0] // 12))}


def _colour_axis(chart: Chart, height: float, inner: float) -> dict[str, Any]:
    """Return the colour axis, with its bar next to the first row of panels."""
    heatmap = next(panel for panel in chart.panels if panel.kind == 'heatmap')
    low, high = chart.limits
    return {
        'colorscale': 'PuOr' if heatmap.signed else 'Cividis',
        'cmin': low,
        'cmax': high,
        'colorbar': {
            'title': {'text': heatmap.label, 'side': 'right'},
            'thickness': 12,
            'len': height / inner,
            'y': 1,
            'yanchor': 'top',
            'outlinewidth': 0,
            'ticksuffix': '\u00a0\u00a0',  # keeps the title off the numbers
        },
    }


def _scale_menu(panels: int) -> dict[str, Any]:
    axes = [f'yaxis{index + 1 if index else ""}.type' for index in range(panels)]
    buttons = [
        {'label': scale, 'method': 'relayout', 'args': [dict.fromkeys(axes, kind)]}
        for scale, kind in (('linear', 'linear'), ('logarithmic', 'log'))
    ]
    return {'buttons': buttons, 'x': 0.5, 'xanchor': 'center', 'y': 1.02, 'yanchor': 'bottom'}


def _animate(figure: go.Figure, chart: Chart) -> None:
    """Add a frame for each moment, a slider and a play button; the last moment is shown first."""
    from plotly import graph_objects as go

    names = list(chart.frames)
    figure.frames = [
        go.Frame(name=name, data=[go.Heatmap(z=each.float().numpy()) for each in values])
        for name, values in chart.frames.items()
    ]
    still = {'mode': 'immediate', 'frame': {'duration': 0, 'redraw': True}}
    playing = {'mode': 'immediate', 'fromcurrent': True, 'frame': {'duration': 400, 'redraw': True}}
    steps = [{'label': name, 'method': 'animate', 'args': [[name], still]} for name in names]
    buttons = [
        {'label': 'Play', 'method': 'animate', 'args': [None, playing | {'fromcurrent': False}]},
        {'label': 'Pause', 'method': 'animate', 'args': [[None], still]},
    ]
    inner = figure.layout.height - _TOP - _BOTTOM
    slider = {'currentvalue': {'prefix': 'epoch '}, 'x': 0.12, 'len': 0.88, 'y': -60 / inner}
    figure.update_layout(
        sliders=[{'steps': steps, 'active': len(names) - 1} | slider],
        updatemenus=[
            {'type': 'buttons', 'direction': 'left', 'buttons': buttons, 'showactive': False,
             'x': 0, 'xanchor': 'left', 'y': -80 / inner, 'yanchor': 'top'}
        ],
        margin_b=_BOTTOM + _SLIDER,
        height=figure.layout.height + _SLIDER,
    )  # fmt: skip
