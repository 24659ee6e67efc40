"""A table of runs: rows of one base recipe, each with several seeds, run as processes."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from masa_vit.inspection.parameter_counts import ParameterCounts, count_parameters
from masa_vit.training.classifier import create_model
from masa_vit.training.configs import load_config
from masa_vit.training.stopping import StopRequest, TrainingStoppedError
from masa_vit.training.work_dir import check_same_recipe, read_summary
from masa_vit.utils.config_paths import resolve_config

_KEYS = {'base', 'rows', 'seeds', 'reference', 'metrics', 'bounds'}
_MATCH_KEYS = {'vary', 'among', 'to', 'count'}
OUTPUT = 'output.txt'


@dataclass(frozen=True)
class Row:
    """One recipe of the table."""

    name: str
    config: Config
    seeds: tuple[int, ...]
    parameters: ParameterCounts
    match: str = ''
    """The budget that was matched, and how closely."""


@dataclass(frozen=True)
class Run:
    """One training: a row with a seed."""

    row: Row
    seed: int
    folder: Path

    def summary(self) -> dict[str, Any]:
        """Return the run's `summary.json`; empty before its first epoch."""
        return read_summary(self.folder)


@dataclass(frozen=True)
class RunTable:
    """The content of a table file."""

    rows: tuple[Row, ...]
    reference: str
    metrics: tuple[str, ...]
    bounds: Mapping[str, float]

    def runs(self, folder: Path) -> list[Run]:
        """Return all runs, seed by seed, so that rows can be compared early."""
        seeds = sorted({seed for row in self.rows for seed in row.seeds})
        return [
            Run(row, seed, folder / row.name / f'seed{seed}')
            for seed in seeds
            for row in self.rows
            if seed in row.seeds
        ]


def is_table(path: str | Path) -> bool:
    """Return whether a Python file is a table of runs rather than a config."""
    try:
        statements = ast.parse(resolve_config(path).read_text(encoding='utf-8')).body
    except SyntaxError:  # a broken config: reading it names the place
        return False
    return any(
        isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'rows'
        for node in statements
    )


def load_table(path: str | Path) -> RunTable:
    """Read a table file.

    The file sets ``base`` (a config), ``rows`` (name -> overrides of the config), ``seeds``,
    ``reference`` (a row), and may set ``metrics`` (the first is the outcome; default: negative
    log-likelihood and top-1) and ``bounds`` (metric -> the largest difference that counts as equal).
    A row may set ``seeds``, and ``match``: ``dict(vary='model.model_args.embed_dim', among=[...],
    to='masa', count='total')`` chooses the value with which its parameters (``'total'`` or those of
    the ``'attention'``) are nearest to another row's.

    Raises:
        FileNotFoundError: If the file or the base does not exist.
        ValueError: For unknown or missing keys, or a row that cannot be built.
    """
    file = resolve_config(path)
    content = Config.fromfile(str(file)).to_dict()
    given = {key for key in content if not key.startswith('_')}
    if given - _KEYS or {'base', 'rows', 'seeds', 'reference'} - given:
        raise ValueError(
            f'table {str(path)!r} has {sorted(given)}, expected base, rows, seeds, reference and '
            'perhaps metrics, bounds'
        )
    base = content['base']
    if '::' not in base and not Path(base).is_file():
        base = str(file.parent / base)
    rows: dict[str, Row] = {}
    overrides = content['rows']
    if content['reference'] not in overrides:
        raise ValueError(f'reference={content["reference"]!r} is not a row; rows: {[*overrides]}')
    for name in sorted(overrides, key=lambda name: 'match' in overrides[name]):
        rows[name] = _row(name, base, dict(overrides[name]), content['seeds'], rows)
    return RunTable(
        tuple(rows[name] for name in overrides),
        content['reference'],
        tuple(content.get('metrics', ('accuracy/nll', 'accuracy/top1'))),
        content.get('bounds', {}),
    )


def _row(
    name: str, base: str, override: dict[str, Any], seeds: Sequence[int], rows: Mapping[str, Row]
) -> Row:
    own = tuple(override.pop('seeds', seeds))
    match = override.pop('match', None)
    try:
        config = load_config(base, override)
        if match is None:
            return Row(name, config, own, count_parameters(create_on_meta(config)))
        if set(match) != _MATCH_KEYS or match['count'] not in ('total', 'attention'):
            raise ValueError(
                f'match={match!r}, expected {sorted(_MATCH_KEYS)}, count: total or attention'
            )
        if match['to'] not in rows:
            raise ValueError(f'match: {match["to"]!r} is not a row without a match')
        target = getattr(rows[match['to']].parameters, match['count'])
        found = []
        for value in match['among']:
            config = load_config(base, {**override, match['vary']: value})
            counts = count_parameters(create_on_meta(config))
            found.append((abs(getattr(counts, match['count']) - target), value, config, counts))
        _, value, config, counts = min(found, key=lambda item: item[0])
        gap = getattr(counts, match['count']) / target - 1
        text = f'{match["vary"].rpartition(".")[2]}={value}: {gap:+.1%} of {match["to"]}'
        return Row(name, config, own, counts, f'{text} ({match["count"]} parameters)')
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'row {name!r}: {error}') from error


def create_on_meta(config: Config) -> Any:
    """Create the timm model of a classifier's config without weights."""
    model = config.model
    args = dict(model.get('model_args') or {})
    with torch.device('meta'):
        return create_model(model['model_name'], model['num_classes'], args)


def select(
    runs: Sequence[Run], rows: Sequence[str] | None, seeds: Sequence[int] | None
) -> list[Run]:
    """Return the runs of some rows and seeds; None: of all.

    Raises:
        ValueError: If no run has a given row or seed.
    """
    for name, wanted, known in (
        ('rows', rows, [*dict.fromkeys(run.row.name for run in runs)]),
        ('seeds', seeds, sorted({run.seed for run in runs})),
    ):
        if unknown := [value for value in wanted or () if value not in known]:
            raise ValueError(f'--{name}: the table has no {unknown}, its {name} are {known}')
    return [
        run
        for run in runs
        if (rows is None or run.row.name in rows) and (seeds is None or run.seed in seeds)
    ]


def train_runs(runs: Sequence[Run], jobs: int = 1) -> dict[Run, str]:
    """Train the unfinished runs, `jobs` processes at a time; finished runs are not changed.

    A run that was stopped continues from its last checkpoint. Output goes to `output.txt` in the
    folder of the run.

    Returns:
        The runs that failed, with the end of their output.

    Raises:
        ValueError: If a folder holds a run of another recipe.
        TrainingStoppedError: After SIGTERM or SIGINT, when all processes have saved their state.
    """
    for run in runs:
        check_same_recipe(run.row.config, run.folder)
    waiting = [run for run in runs if not run.summary().get('finished')]
    active: dict[Run, subprocess.Popen[bytes]] = {}
    failed: dict[Run, str] = {}
    request = StopRequest()
    epochs = {run: int(run.row.config.train_cfg['max_epochs']) for run in runs}
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with request.listening(), Progress(*columns) as progress:
        done = sum(run.summary().get('epoch', 0) for run in runs)
        task = progress.add_task('', total=sum(epochs.values()), completed=done)
        while (waiting or active) and request.signal is None:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                active[run] = _start(run, jobs)
            time.sleep(0.5)
            for run in [run for run, process in active.items() if process.poll() is not None]:
                if active.pop(run).returncode or not run.summary().get('finished'):
                    failed[run] = _tail(run)
            names = ', '.join(f'{run.row.name} seed {run.seed}' for run in active)
            left = f'{len(waiting)} waiting' + (f', {len(failed)} failed' if failed else '')
            done = sum(epochs[run] for run in failed) + sum(
                run.summary().get('epoch', 0) for run in runs if run not in failed
            )
            progress.update(task, completed=done, description=f'{names} ({left})')
        if request.signal is not None:
            for process in active.values():
                process.send_signal(signal.SIGTERM)
            for process in active.values():
                process.wait()
            raise TrainingStoppedError(
                f'stopped by {request.signal.name}; all runs have saved their state. The same command '
                'continues.'
            )
    return failed


def _start(run: Run, jobs: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    config = run.folder.parent / f'{run.row.name}.py'
    run.row.config.dump(str(config))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    threads = max(1, (cores or 1) // jobs)
    command = [sys.executable, '-m', 'masa_vit.cli', 'train', str(config)]
    command += ['--work-dir', str(run.folder), '--seed', str(run.seed), '--resume']
    with (run.folder / OUTPUT).open('ab') as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={'OMP_NUM_THREADS': str(threads), **os.environ},
            start_new_session=True,  # Ctrl-C reaches only this process, which forwards it
        )


def _tail(run: Run) -> str:
    lines = (run.folder / OUTPUT).read_text(encoding='utf-8', errors='replace').splitlines()
    return '\n'.join(lines[-8:])


def results(runs: Sequence[Run], metric: str) -> Iterator[tuple[Row, dict[int, float]]]:
    """Yield every row with its finished seeds -> last value of a metric."""
    by_row: dict[str, dict[int, float]] = {}
    rows = {run.row.name: run.row for run in runs}
    for run in runs:
        summary = run.summary()
        if summary.get('finished') and metric in summary['metrics']:
            by_row.setdefault(run.row.name, {})[run.seed] = summary['metrics'][metric]['last']
    for name, row in rows.items():
        yield row, by_row.get(name, {})
