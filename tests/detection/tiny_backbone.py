"""A tiny backbone for tests."""

from __future__ import annotations

from typing import Any

from masa_vit.detection import MasaViT

ARGS = dict(img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2)
NAMES = ['vit_tiny_masa_s2', 'vit_tiny_patch16_224']


def build(name: str = 'vit_tiny_masa_s2', **kwargs: Any) -> MasaViT:
    model_args = {**ARGS, **kwargs.pop('model_args', {})}
    return MasaViT(name, model_args, **{'window_size': 3, **kwargs})
