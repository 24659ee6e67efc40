"""No command executes a file, hangs on it or ends without a message that names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    'options',
    [
        ['--no-detector', '--only', 'exec'],
        pytest.param(['--no-detector'], marks=pytest.mark.slow),
        pytest.param(['--only', 'system'], marks=pytest.mark.slow),
        pytest.param(['--only', 'state_dict'], marks=pytest.mark.slow),
    ],
)
def test_hostile_files(options):
    result = subprocess.run(
        [sys.executable, HERE / 'hostile.py', *options],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert ' 0 bad' in result.stdout
