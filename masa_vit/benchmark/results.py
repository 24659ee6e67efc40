"""The results of a benchmark: a JSON file that grows with it, a table, a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from masa_vit import __version__
from masa_vit.benchmark.timing import Measurement
from masa_vit.utils.staging import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report:
    """Collects measurements; after each, writes all of them to a file, if there is one."""

    def __init__(self, arguments: Mapping[str, Any], path: Path | None = None) -> None:
        """Record the arguments and the machine; `path` is the JSON file."""
        self.arguments = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in arguments.items()
        }
        self.path = path
        self.machine = describe_machine(str(arguments.get('device', 'cpu')))
        self.models: dict[str, Any] = {}
        self.notes: list[str] = []
        self.measurements: list[Measurement] = []
        self._write()

    def add(self, *measurements: Measurement) -> None:
        """Add measurements, and write the file."""
        self.measurements += measurements
        self._write()

    def note(self, text: str) -> None:
        """Record the reason for a missing measurement."""
        if text not in self.notes:
            self.notes.append(text)
            self._write()
            print(f'note: {text}')

    def _write(self) -> None:
        if self.path:
            content = {
                'machine': self.machine,
                'arguments': self.arguments,
                **self.models,
                'notes': self.notes,
                'results': [measurement.to_json() for measurement in self.measurements],
            }
            write_atomically(self.path, json.dumps(content, indent=1) + '\n')


def describe_machine(device: str) -> dict[str, Any]:
    """Return hardware and versions."""
    info = Path('/proc/cpuinfo')  # platform has the model's name on macOS and Windows only
    lines = info.read_text(encoding='utf-8').splitlines() if info.exists() else []
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    cpu = next(names, platform.processor() or platform.machine())
    return {
        'platform': platform.platform(),
        'cpu': cpu,
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'device': torch.cuda.get_device_name(device) if device.startswith('cuda') else cpu,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'masa_vit': __version__,
    }


def print_table(title: str, measurements: Sequence[Measurement]) -> None:
    """Print medians of both models and the ratio with its spread, at most 100 columns wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1))
    for header in ('', 'model', 'against', 'ratio', '95 % interval', 'range'):
        table.add_column(header, justify='right' if header else 'left', no_wrap=True)
    for row in measurements:
        values = [_format(statistics.median(row.model), row.unit)]
        if row.ratio is not None and row.against:
            values += [_format(statistics.median(row.against), row.unit), f'{row.ratio:.3f}']
            if len(row.ratios) > 1:
                values.append(_span(*row.interval) if row.interval else '')
                values.append(_span(min(row.ratios), max(row.ratios)))
        table.add_row(row.what, *values)
    console = Console()
    if not console.is_terminal:  # rich would cut it to 80 columns
        console.width = 100
    console.print(table)


def _span(low: float, high: float) -> str:
    return f'{low:.3f}-{high:.3f}'


def _format(value: float, unit: str) -> str:
    if unit == 's':
        return f'{value:.3f} s' if value >= 1 else f'{value * 1000:.2f} ms'
    if unit == 'bytes':
        return f'{value / 2**20:,.2f} MiB'
    for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
        if value >= size:
            return f'{value / size:,.2f} {letter}'
    return f'{value:,.0f}'


def plot_ratios(measurements: Sequence[Measurement], title: str) -> Figure:
    """Draw the ratios with their ranges: a line per measurement, a marker per setting.

    Raises:
        ValueError: If nothing was compared.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no screen needed

    compared = [row for row in measurements if row.against]
    if not compared:
        raise ValueError('there are no ratios to draw: nothing was compared')
    names = list(dict.fromkeys(row.what for row in compared))
    settings = list(dict.fromkeys(describe_setting(row.setting) for row in compared))
    height = 2 + 0.06 * len(settings) + len(names) * max(0.3, 0.1 * len(settings))
    figure = Figure(figsize=(8, height), layout='constrained')
    axes = figure.subplots()
    for index, setting in enumerate(settings):
        rows = [row for row in compared if describe_setting(row.setting) == setting]
        offset = 0.7 * ((index + 0.5) / len(settings) - 0.5)
        medians = [statistics.median(row.ratios) for row in rows]
        below = [m - min(row.ratios) for m, row in zip(medians, rows, strict=True)]
        above = [max(row.ratios) - m for m, row in zip(medians, rows, strict=True)]
        places = [names.index(row.what) + offset for row in rows]
        marker = 'osD^vP*X<>'[index % 10]
        axes.errorbar(medians, places, xerr=[below, above], fmt=marker, capsize=2, label=setting)
    axes.axvline(1.0, color='black', linewidth=1, linestyle='--')
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel('ratio, model over other (median; bar: range of the pairs)')
    axes.set_ylabel('measurement')
    axes.grid(axis='x', alpha=0.3)
    figure.suptitle('\n'.join(textwrap.wrap(title, 88)), fontsize='medium')
    figure.legend(loc='outside lower center', ncols=min(len(settings), 4), fontsize='small')
    return figure


def describe_setting(setting: Mapping[str, Any]) -> str:
    """Return a setting in words, e.g. 'batch 4, bf16, compiled'."""
    if not setting:
        return 'any setting'
    words = [f'batch {setting["batch_size"]}', setting['dtype']]
    words += ['compiled'] if setting.get('compile') else []
    words += ['checkpointing'] if setting.get('checkpointing') else []
    return ', '.join(words)
