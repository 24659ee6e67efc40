"""A report as one HTML file that needs no network: figures, tables that sort, numbers on hover."""

from __future__ import annotations

import html
import json
from pathlib import Path
from string import Template

from masa_vit.inspection.report import Report

_ASSETS = Path(__file__).parent / 'page'
_SCRIPTS = (
    'data.js',
    'tables.js',
    'drawing.js',
    'figures.js',
    'figures_of_data.js',
    'figure_list.js',
    'page.js',
)


def write_page(report: Report, path: Path, title: str) -> None:
    """Write a report as a page that opens in any browser, offline.

    Everything is in the file: style, scripts, plotly.js, and the report once, as the JSON of
    `Report.to_dict`, from which the page draws what is looked at.

    Args:
        report: At least one model, or a history.
        path: Where to; overwritten if it exists. About 5 MB, most of it plotly.js.
        title: Of the page.

    Raises:
        ImportError: If plotly is missing (extra `inspect`).
        ValueError: If there is a number in the report that is not finite: JSON has none of those.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            'the HTML report needs plotly, which is not installed: pip install "masa-vit[inspect]"'
        ) from error
    page = Template(_read('page.html')).substitute(
        title=html.escape(title),
        style=_read('page.css'),
        plotly=get_plotlyjs(),
        report=_embed(report),
        script='\n'.join(map(_read, _SCRIPTS)),
    )
    path.write_text(page, encoding='utf-8')


def _embed(report: Report) -> str:
    """JSON that cannot end the element it stands in, whatever the names in it."""
    document = json.dumps(report.to_dict(), allow_nan=False, separators=(',', ':'))
    return document.replace('<', '\\u003c')


def _read(name: str) -> str:
    return (_ASSETS / name).read_text(encoding='utf-8')
