"""Dense models to compress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

VARIANTS = [
    {},
    {'qk_norm': True, 'init_values': 1e-1, 'reg_tokens': 2, 'no_embed_class': True},
    {'qkv_bias': False, 'proj_bias': False, 'class_token': False, 'global_pool': 'avg'},
    {'dynamic_img_size': True, 'drop_path_rate': 0.1, 'pre_norm': True, 'global_pool': 'map'},
    {'num_classes': 0, 'scale_attn_norm': True, 'fix_init': True, 'act_layer': 'quick_gelu'},
]


@pytest.fixture
def dense(small) -> Callable[..., nn.Module]:
    """Create a small dense model whose biases and norms are not at their trivial start."""

    def create(**kwargs: Any) -> nn.Module:
        model = small('vit_tiny_patch16_224', **kwargs).eval()
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn_like(param), alpha=0.05)
        return model

    return create


@pytest.fixture(params=VARIANTS)
def variant(request) -> dict[str, Any]:
    """Arguments of an architecture."""
    return request.param
