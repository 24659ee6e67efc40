"""Run `masa-vit` on the toy task in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TOY_CONFIG = HERE / 'toy_config.py'


def run_command(*arguments, cwd, launcher=(), env=None):
    """`masa-vit ARGUMENTS`, perhaps under a launcher such as torchrun."""
    return subprocess.run(
        [sys.executable, *launcher, '-m', 'masa_vit.cli', *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(HERE), os.environ.get('PYTHONPATH', '')]),
            'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '',
            **(env or {}),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
