from __future__ import annotations

from collections.abc import Callable

import pytest

from masa_vit.benchmark import Spec

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


@pytest.fixture(scope='session')
def spec() -> Callable[..., Spec]:
    """What to build, tiny: ``spec('vit_tiny_masa_s2', batch_size=3, coefficients='mlp')``."""

    def make(name: str = 'vit_tiny_masa_s2', dense: bool = False, batch_size: int = 2, **args):
        checkpointing = args.pop('checkpointing', False)
        device = args.pop('device', 'cpu')
        return Spec(name, dense, {**TINY, **args}, batch_size, None, device, checkpointing)

    return make
