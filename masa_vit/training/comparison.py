"""Train configs one after another and compare their results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from masa_vit.inspection.plots import plot_coefficients, plot_curves
from masa_vit.models.state_dict import read_stack
from masa_vit.training.checkpoint_files import read_checkpoint
from masa_vit.training.configs import load_config
from masa_vit.training.launch import train
from masa_vit.training.work_dir import check_same_recipe, check_work_dir_free, read_summary
from masa_vit.utils.staging import write_atomically

CAVEAT = 'One run each, one seed: a {} ranks nothing; run several seeds.'
_COLUMNS = ('top1', 'bbox_mAP')  # ends of the names of the metrics to show


def compare(
    configs: Sequence[str | Path | Config],
    work_dir: str | Path | None = None,
    *,
    resume: bool = False,
    metric: str | None = None,
    **train_options: Any,
) -> list[dict[str, Any]]:
    """Train configs by `train`, each in `work_dir/<name of the config>`, and print a table.

    Writes `compare.json`, `compare.md` and `curves.png` into the work dir, and, for every model
    with sharing, `<name>/coefficients.png`.

    Args:
        configs: paths, `masa_vit::...` names or loaded configs, with different file names.
        work_dir: by default `work_dirs/compare_<time>`.
        resume: take finished trainings as they are and continue the others.
        metric: the column shown; by default the first whose name ends in top1 or bbox_mAP, else
            the first.
        **train_options: passed to `train` (amp, seed, auto_scale_lr, cfg_options).

    Returns:
        A row per config.

    Raises:
        ValueError: two configs of one name, a work dir that holds other runs, and the errors of
            `train`.
    """
    if resume and work_dir is None:
        raise ValueError('compare: --resume needs the --work-dir of the comparison.')
    work_dir = Path(work_dir or f'work_dirs/compare_{time.strftime("%Y%m%d_%H%M%S")}').resolve()
    folders = {work_dir / Path(_file(config)).stem: config for config in configs}
    if len(folders) < len(configs):
        raise ValueError(
            f'compare: the configs {[*map(_file, configs)]} have file names in common; rename one, for '
            'its folder and its row.'
        )
    for folder, config in folders.items():  # before the first training
        cfg = load_config(config, train_options.get('cfg_options'))
        if not resume:
            check_work_dir_free(folder)
        else:
            check_same_recipe(cfg, folder)

    rows, histories = [], {}
    for number, (folder, config) in enumerate(folders.items(), 1):
        print(f'--- {number}/{len(folders)}: {_file(config)}', flush=True)
        summary = read_summary(folder) if resume else {}
        if not summary.get('finished'):
            summary = train(config, folder, resume='auto' if resume else None, **train_options)
        rows.append(_row(folder, _file(config), summary, metric))
        histories[folder.name] = summary['history']

    plot_curves(histories, rows[0]['metric']).savefig(work_dir / 'curves.png', dpi=120)
    write_atomically(work_dir / 'compare.json', json.dumps(rows, indent=2) + '\n')
    write_atomically(work_dir / 'compare.md', _markdown(rows))
    _print(rows, work_dir)
    return rows


def _file(config: str | Path | Config) -> str:
    return str(config.filename) if isinstance(config, Config) else str(config).rpartition('::')[2]


def _row(folder: Path, config: str, summary: dict[str, Any], metric: str | None) -> dict[str, Any]:
    metrics = summary['metrics']
    name = metric or next((m for m in metrics if m.endswith(_COLUMNS)), next(iter(metrics), None))
    value = metrics[name]['last'] if name in metrics else None
    parameters = summary['parameters']
    checkpoints = summary.get('checkpoints', {})
    return {
        'name': folder.name,
        'config': config,
        'seed': summary['seed'],
        'commit': summary['commit'],
        'metric': name,
        'value': value,
        'half_width': _half_width(name, value, summary['samples'].get('val')),
        'attention_parameters': parameters.get('attention'),
        'total_parameters': parameters['total'],
        'seconds_per_epoch': summary['seconds']['epoch'],
        'checkpoint': checkpoints.get('last'),  # the epoch whose metric is shown
        'tensorboard': summary['tensorboard'],
        'coefficients': _draw_coefficients(folder, checkpoints.get('last')),
    }


def _is_percentage(metric: str) -> bool:
    return 'top' in metric  # a classifier's accuracy; an AP lies between 0 and 1


def _half_width(name: str | None, value: float | None, samples: int | None) -> float | None:
    """Half of the 95 % interval (normal approximation) of an accuracy in percent."""
    if name is None or value is None or not samples or not _is_percentage(name):
        return None
    p = min(max(value / 100, 0.0), 1.0)
    return 100 * 1.96 * math.sqrt(p * (1 - p) / samples)


def _draw_coefficients(folder: Path, checkpoint: str | None) -> str | None:
    """Draw C of a checkpoint; None when it shares nothing."""
    from masa_vit import inspection

    state = read_checkpoint(checkpoint)['state_dict'] if checkpoint else {}
    if read_stack(state).is_by_channel or not (coefficients := inspection.coefficients(state)):
        return None
    path = folder / 'coefficients.png'
    plot_coefficients(coefficients, title=folder.name).savefig(path, dpi=120)
    return str(path)


_HEADER = ('name', 'value', 'attention parameters', 'total parameters', 'seconds per epoch')


def _metric_name(rows: list[dict[str, Any]]) -> str:
    return (rows[0]['metric'] or _HEADER[1]).rpartition('/')[2]


def _caveat(rows: list[dict[str, Any]]) -> str:
    intervals = rows[0]['half_width'] is not None
    return CAVEAT.format('difference inside the +-' if intervals else 'small difference')


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row['value'] is None:
        value = '-'
    else:
        value = format(row['value'], '.2f' if _is_percentage(row['metric']) else '.4g')
    if row['half_width'] is not None:
        value += f' +- {row["half_width"]:.1f}'
    seconds = row['seconds_per_epoch']
    return (
        row['name'],
        value,
        '-' if row['attention_parameters'] is None else f'{row["attention_parameters"]:,}',
        f'{row["total_parameters"]:,}',
        '-' if seconds is None else f'{seconds:.1f}',
    )


def _markdown(rows: list[dict[str, Any]]) -> str:
    header = (_HEADER[0], _metric_name(rows), *_HEADER[2:])
    lines = [header, ('---', *['---:'] * (len(header) - 1)), *map(_cells, rows)]
    table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    runs = '\n'.join(
        f'- {r["name"]}: config `{r["config"]}`, seed {r["seed"]}, commit {r["commit"]}'
        for r in rows
    )
    return f'{table}\n\n{_caveat(rows)}\n\n{runs}\n'


def _print(rows: list[dict[str, Any]], work_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    metric = _metric_name(rows)
    intervals = '; +-: binomial, 95 %' if rows[0]['half_width'] is not None else ''
    table = Table(title=f'{metric} of the last epoch{intervals}')
    table.add_column(_HEADER[0], overflow='fold')
    for column in (metric, 'attention\nparameters', 'total\nparameters', 'seconds\nper epoch'):
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    console.print(_caveat(rows))
    for row in rows:
        for key in ('checkpoint', 'tensorboard', 'coefficients'):
            if row[key]:
                console.print(f'{row["name"]} {key}: {row[key]}', markup=False, highlight=False)
    for what, file in (('table', 'compare.md'), ('curves', 'curves.png')):
        console.print(f'{what}: {work_dir / file}', markup=False, highlight=False)
