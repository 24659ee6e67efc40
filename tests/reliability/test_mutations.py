"""A damaged file of ours is refused, or gives what was written."""

import os
import subprocess
import sys
from pathlib import Path


def test_mutated_checkpoints():
    script = Path(__file__).with_name('mutations.py')
    result = subprocess.run(
        [sys.executable, script, '--number', '300'],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert ' 0 bad' in result.stdout
