"""Kill trainings at random moments, resume each, and compare it with one that was left alone.

    python tests/reliability/kills.py --kills 30
    python tests/reliability/kills.py --task detector --kills 5
    python tests/reliability/kills.py --signal TERM --kills 10

A moment is drawn between the start of the process and the end of the undisturbed run. The resumed run
must have equal weights (all bits), metrics and losses, and leave the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'detection'))

ENVIRONMENT = {
    **os.environ,
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
}


def command(task: str, folder: Path) -> list[str]:
    """The training: four epochs of the digits with two loader workers, or two of a tiny detector."""
    start = [sys.executable, str(ROOT / 'tools' / 'train.py')]
    if task == 'digits':
        options = ['train_cfg.max_epochs=4', 'train_dataloader.num_workers=2']
        config = ROOT / 'configs' / 'cls' / 'vit_tiny_masa_s4_digits.py'
        return [*start, str(config), '--cfg-options', *options]
    from tiny_detector import write_coco, write_config

    config = write_config(folder / 'detector.py', write_coco(folder / 'coco'))
    return [*start, str(config), '--cfg-options', 'train_cfg.max_epochs=4']


def run(arguments: list[str], work_dir: Path, *more: str) -> subprocess.Popen:
    """Start a training; its output goes to a file beside the work dir."""
    with work_dir.with_suffix('.log').open('a') as log:
        return subprocess.Popen(
            [*arguments, '--work-dir', str(work_dir), *more],
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )


def result(work_dir: Path) -> tuple[dict, dict, set[str]]:
    """Weights, what the summary holds besides times, and the names of the files."""
    checkpoint = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=True)
    summary = json.loads((work_dir / 'summary.json').read_text())
    losses = [record['loss'] for record in summary['history']]
    names = {path.name for path in work_dir.iterdir() if not re.fullmatch(r'\d{8}_\d+', path.name)}
    return checkpoint['state_dict'], {'losses': losses, 'metrics': summary['metrics']}, names


def compare(work_dir: Path, expected: tuple[dict, dict, set[str]]) -> list[str]:
    """The ways in which a run differs from the one that was left alone."""
    weights, summary, names = result(work_dir)
    faults = [name for name, value in expected[0].items() if not torch.equal(value, weights[name])]
    faults += [key for key, value in expected[1].items() if summary[key] != value]
    return faults + [f'file {name}' for name in sorted(names ^ expected[2])]


def main() -> int:
    """Run, print a line for each kill, return 1 if a run differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--task', choices=['digits', 'detector'], default='digits')
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--signal', choices=['KILL', 'TERM', 'INT'], default='KILL')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    number = signal.Signals[f'SIG{args.signal}']
    generator = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = command(args.task, folder)
        start = time.monotonic()
        assert run(training, folder / 'whole').wait() == 0, (folder / 'whole.log').read_text()
        seconds = time.monotonic() - start
        expected = result(folder / 'whole')
        print(f'undisturbed: {seconds:.1f} s, {len(expected[0])} tensors', flush=True)
        equal = 0
        for kill in range(args.kills):
            work_dir = folder / f'killed_{kill}'
            moment = generator.uniform(0, seconds)
            process = run(training, work_dir, '--resume')
            try:
                code = process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                code = process.wait()
            left = sorted(p.name for p in work_dir.glob('*.pth')) if work_dir.exists() else []
            resumed = run(training, work_dir, '--resume').wait()
            faults = compare(work_dir, expected) if resumed == 0 else [f'exit code {resumed}']
            equal += not faults
            state = 'equal' if not faults else f'DIFFERS: {faults}'
            print(
                f'{kill + 1:3} at {moment:5.1f} s, code {code:3}, left {left}: {state}', flush=True
            )
        print(f'{equal} of {args.kills} equal to the undisturbed run')
        return int(equal < args.kills)


if __name__ == '__main__':
    sys.exit(main())
