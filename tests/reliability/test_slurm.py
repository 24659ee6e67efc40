"""The job script of docs/reliability.md: stopped by Slurm, requeued, finished."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / 'tests' / 'training'


def job_script():
    page = (ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8')
    return re.search(r'```bash\n(#!/bin/bash\n#SBATCH.*?)```', page, re.S)[1]


@pytest.mark.slow
def test_a_job_is_requeued_until_its_training_is_done(tmp_path):
    """`srun` and `scontrol` are replaced; the training has no launcher and slow steps."""
    bin_ = tmp_path / 'bin'
    bin_.mkdir()
    for name, line in (
        ('srun', 'exec "$@"'),
        ('scontrol', f'echo "$@" >> {tmp_path}/requeued'),
        ('masa-vit', f'exec {sys.executable} -m masa_vit.cli "$@"'),
    ):
        (bin_ / name).write_text(f'#!/bin/sh\n{line}\n')
        (bin_ / name).chmod(0o755)
    script = job_script().replace('--launcher slurm', '--seed 1 --cfg-options "$OPTION"')
    (tmp_path / 'job.sh').write_text(script.replace('CONFIG', str(TOY / 'toy_config.py')))

    def start(option):
        environment = {
            **os.environ,
            'PATH': f'{bin_}:{os.environ["PATH"]}',
            'PYTHONPATH': f'{ROOT}:{TOY}',
            'OMP_NUM_THREADS': '1',
            'SLURM_JOB_ID': '17',
            'OPTION': option,
        }
        return subprocess.Popen(['bash', 'job.sh'], cwd=tmp_path, env=environment)

    job = start('train_dataloader.dataset.delay=0.3')
    summary = tmp_path / 'work_dirs/run/summary.json'  # written after the first epoch
    for _ in range(600):
        if summary.exists():
            break
        time.sleep(0.1)
    time.sleep(2)  # into the second epoch, which takes 6 seconds
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 75
    assert (tmp_path / 'requeued').read_text() == 'requeue 17\n'
    assert list(summary.parent.glob('stopped_iter_*.pth'))
    assert start('train_dataloader.dataset.delay=0').wait(timeout=60) == 0
    assert '"finished": true' in summary.read_text()
