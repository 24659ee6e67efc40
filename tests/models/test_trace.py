"""How much of our code a reader has to follow: calls, functions and files, with a limit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import masa_vit

PACKAGE = Path(masa_vit.__file__).parent


class Trace(NamedTuple):
    calls: int
    functions: int
    files: int


def trace(function) -> Trace:
    """Count the calls of functions of this package during ``function()``."""
    calls: list[tuple[str, str]] = []

    def profile(frame, event, arg):
        code = frame.f_code
        if event == 'call' and Path(code.co_filename).is_relative_to(PACKAGE):
            calls.append((code.co_filename, f'{code.co_name}:{code.co_firstlineno}'))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return Trace(len(calls), len({*calls}), len({file for file, _ in calls}))


def test_a_block_in_training(small, images):
    model = small().train()
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    found = trace(lambda: model.blocks[0](x))
    assert found.calls <= 30
    assert found.files <= 4


def test_fold(small):
    model = small()
    found = trace(lambda: masa_vit.fold(model))
    assert found.functions <= 30
    assert found.files <= 6
