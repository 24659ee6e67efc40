"""Commands on tiny models."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from masa_vit.cli import benchmark as command

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


@pytest.fixture(scope='session')
def run() -> Callable[..., int]:
    """Run the command on a tiny model: ``run('vit_tiny_masa_s2', '--pairs', '1')``."""

    def call(name: str, *options: str) -> int:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        args = [f'{key}={value}' for key, value in TINY.items()]
        argv = [name, '--device', 'cpu', '--model-args', *args, *options]
        return command.run(parser.parse_args(argv))

    return call
