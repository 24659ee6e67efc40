"""The toy task for the engine's tests, in this process and in those that the tests start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def toy_config():
    return HERE / 'toy_config.py'


@pytest.fixture
def command(tmp_path):
    """Runs `masa-vit ARGUMENTS` in a process of its own."""

    def run(*arguments, launcher=(), env=None):
        return subprocess.run(
            [sys.executable, *launcher, '-m', 'masa_vit.cli', *map(str, arguments)],
            cwd=tmp_path,
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

    return run
