"""A report as one HTML file that needs no network: figures, tables that sort, numbers on hover."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from masa_vit.inspection.chart_contents import report_charts
from masa_vit.inspection.plotly_figures import TEMPLATE, draw
from masa_vit.inspection.quantities import QUANTITIES
from masa_vit.inspection.report import Report
from masa_vit.inspection.tables import SUMMARY, summary_rows

_BY_ATOM = ('coefficients', 'contributions', 'shares')
_BY_LAYER = (
    'weight_norm',
    'effective_rank',
    'stable_rank',
    'effective_atoms',
    'effective_atoms_entropy',
    'residual_share',
)


def write_page(report: Report, path: Path, title: str) -> None:
    """Write a report as a page that opens in any browser, offline.

    The file holds style, scripts, plotly.js, the figures, and the report as the JSON of
    `Report.to_dict`, for download.

    Args:
        report: At least one model, or a history.
        path: Overwritten if it exists. About 6 MB, most of it plotly.js.
        title: Of the page.

    Raises:
        ImportError: If plotly or jinja2 is missing (extra `inspect`).
        ValueError: If a number of the report is not finite: JSON has none of those.
    """
    try:
        from jinja2 import Environment
        from plotly.offline import get_plotlyjs
        from plotly.utils import PlotlyJSONEncoder
    except ImportError as error:
        raise ImportError(
            'the HTML report needs plotly and jinja2: pip install "masa-vit[inspect]"'
        ) from error
    document = report.to_dict()
    charts = [
        {
            'figure': chart.figure,
            'choice': chart.choice,
            'quantities': list(dict.fromkeys(panel.quantity for panel in chart.panels)),
            'drawing': draw(chart),
        }
        for chart in report_charts(report)
        if chart.in_page
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters['digits'] = digits
    template = environment.from_string(
        Path(__file__).with_name('page.html').read_text(encoding='utf-8')
    )
    page = template.render(
        title=title,
        report=document,
        document=_embed(json.dumps(document, allow_nan=False, separators=(',', ':'))),
        charts=_embed(json.dumps(charts, cls=PlotlyJSONEncoder)),
        template=json.dumps(TEMPLATE),
        plotly=get_plotlyjs(),
        summary_columns=SUMMARY,
        summary={name: [*summary_rows(each)] for name, each in report.models.items()},
        tables=[*_number_tables(report)],
    )
    path.write_text(page, encoding='utf-8')


def _embed(document: str) -> str:
    """Return JSON that is safe inside a script element."""
    return document.replace('<', '\\u003c')


def _number_tables(report: Report) -> Iterator[dict[str, Any]]:
    """Yield tables of each projection: layer by atom, and by layer."""
    for model, summary in report.models.items():
        for name, arrays in summary.projections.items():
            of = {'model': model, 'projection': name.upper() if len(name) == 1 else name}
            if 'coefficients' in arrays:
                rows = [
                    [layer, atom, *(arrays[each][layer, atom].item() for each in _BY_ATOM)]
                    for layer in range(summary.depth)
                    for atom in range(arrays['coefficients'].shape[1])
                ]
                yield of | _table('Layer by atom', ('layer', 'atom'), _BY_ATOM, rows)
            found = [each for each in _BY_LAYER if each in arrays]
            values = torch.stack([arrays[each].double() for each in found], dim=1).tolist()
            rows = [[layer, *row] for layer, row in enumerate(values)]
            yield of | _table('By layer', ('layer',), found, rows)


def _table(caption: str, places: Any, names: Any, rows: Any) -> dict[str, Any]:
    columns = dict.fromkeys(places, '')
    columns |= {name.replace('_', ' '): QUANTITIES[name].text for name in names}
    return {'caption': caption, 'columns': columns, 'rows': rows}


def digits(value: Any) -> str:
    """Four digits of a number, a text as it is, a dash for None."""
    if value is None:
        return '\N{EN DASH}'
    if not isinstance(value, float):
        return str(value)
    text = f'{value:.3e}' if value and not 1e-3 <= abs(value) < 1e5 else f'{value:#.4g}'
    return text.replace('-', '\N{MINUS SIGN}')
