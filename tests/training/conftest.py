"""The toy task for the engine's tests, in this process and in those that the tests start."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_command import TOY_CONFIG, run_command


@pytest.fixture
def toy_config():
    return TOY_CONFIG


@pytest.fixture
def command(tmp_path):
    """Runs `masa-vit ARGUMENTS` in a process of its own."""
    return functools.partial(run_command, cwd=tmp_path)
