"""The progress bar: on a terminal only, and never in the log file."""

import os
import pty
import subprocess
import sys

import pytest


def run_on_a_terminal(arguments, env):
    """Run a command with a pseudo-terminal as its stdout; returns what it showed."""
    reader, writer = pty.openpty()
    process = subprocess.Popen(arguments, stdout=writer, stderr=subprocess.PIPE, env=env)
    os.close(writer)
    shown = b''
    while True:
        try:
            chunk = os.read(reader, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(reader)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    return shown.decode()


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no pseudo-terminals')
def test_bar_on_a_terminal(toy_config, tmp_path):
    env = {**os.environ, 'PYTHONPATH': str(toy_config.parent), 'OMP_NUM_THREADS': '1'}
    env |= {'TERM': 'xterm', 'COLUMNS': '120', 'CUDA_VISIBLE_DEVICES': ''}
    train = [sys.executable, '-m', 'masa_vit.cli', 'train', str(toy_config)]
    shown = run_on_a_terminal([*train, '--work-dir', str(tmp_path / 'run')], env)
    assert 'epoch 3/3' in shown
    assert 'loss' in shown
    assert 'Warning' not in shown  # of torch, of a loss with its graph
    assert 'Epoch(train)' not in shown
    assert 'Epoch(val)' in shown
    assert '\x1b[?25h' in shown  # the cursor is back
    (log,) = (tmp_path / 'run').glob('*/*.log')
    text = log.read_text()
    assert 'Epoch(train)' in text
    assert '\x1b' not in text
