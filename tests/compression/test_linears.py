"""Stacks of blocks that are no vision transformer of ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import masa_vit
from masa_vit.compression import compress_linears, matrix_pca
from masa_vit.compression.source_weights import linear_weights
from masa_vit.export import export_folded, export_hub

FUSED = {'attn.qkv': 'qkv', 'attn.proj': 'o'}
SEPARATE = {'attn.q_proj': 'q', 'attn.k_proj': 'k', 'attn.v_proj': 'v', 'attn.proj': 'o'}


def eva(name: str, **kwargs: Any) -> nn.Module:
    """A small model of timm's `Eva`, whose branches count."""
    args = {'img_size': 32, 'embed_dim': 48, 'depth': 4, 'num_heads': 3, 'num_classes': 5, **kwargs}
    model = timm.create_model(name, patch_size=8, **args).eval()
    if not hasattr(model, '_model_args'):  # older versions of timm
        model._model_args = {'patch_size': 8, **args}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def make_alike(blocks: Any, layout: dict[str, str]) -> None:
    """Give the last layer twice the weights of the second: three atoms are enough."""
    with torch.no_grad():
        for path in layout:
            weight = blocks[1].get_parameter(f'{path}.weight')
            blocks[3].get_parameter(f'{path}.weight').copy_(2 * weight)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'layout'),
    [
        ('vit_small_patch16_dinov3', {}, FUSED),
        ('vit_small_patch16_dinov3_qkvb', {}, FUSED),  # biases beside the linear map
        ('eva02_base_patch14_448', {'qkv_fused': False}, SEPARATE),
    ],
)
def test_dinov3_and_eva(name, kwargs, layout, images, tmp_path):
    dense = eva(name, **kwargs)
    make_alike(dense.blocks, layout)
    model = copy.deepcopy(dense)
    model.blocks = compress_linears(model.blocks, layout, 3)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, dense)]
    assert sizes[1] - sizes[0] == 48 * 48 * 4 - 3 * 4 * 4, 'an atom for each of 4 weights less'
    torch.testing.assert_close(model(images), dense(images), rtol=1e-3, atol=1e-4)
    model.train()(images).square().sum().backward()
    assert all(bank.atoms.grad.abs().sum() > 0 for bank in model.blocks.attn_banks.values())

    export_folded(model.eval(), tmp_path / 'folded')
    exported = timm.create_model(f'local-dir:{tmp_path}/folded', pretrained=True).eval()
    torch.testing.assert_close(exported(images), model(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match='timm has no name for a Eva whose weights are shared'):
        export_hub(model, tmp_path / 'hub')
    folded = masa_vit.fold(model)
    again = eva(name, **kwargs)
    again.load_state_dict(folded.state_dict())
    torch.testing.assert_close(again(images), model(images), rtol=1e-3, atol=1e-4)


class Block(nn.Module):
    """Grouped queries: fewer rows for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 32)


GROUPED = {'qkv': {'q': 16, 'k': 8, 'v': 8}}


def test_any_blocks_with_groups_and_residuals():
    blocks = [Block() for _ in range(6)]
    before = linear_weights(blocks, GROUPED)
    groups = [[0, 2, 4], [1, 3, 5]]
    banks = compress_linears(blocks, GROUPED, 1, groups=groups, residual_rank=1).banks
    assert [*banks] == [f'{name}_{of}' for name in 'qkv' for of in ('0_2_4', '1_3_5')]
    for layers in ([0, 2, 4], [1, 3, 5]):
        rows = [before['k'][layer] for layer in layers]
        pca = matrix_pca(rows, 1)
        for layer, row, coef in zip(layers, rows, pca.coef, strict=True):
            linear = blocks[layer].qkv
            found = linear.weight[16:24]
            left = row - coef.float() * pca.atoms[0]
            assert linear.down_k.shape == (1, 16)
            values = torch.linalg.svdvals(left)
            lost = torch.linalg.norm(found - row)
            torch.testing.assert_close(lost, values[1:].norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('layout', 'kwargs', 'message'),
    [
        ({'qkv': 'qk', 'proj': 'o'}, {'num_atoms': 2}, "block 0 .* has no 'proj'"),
        (GROUPED, {'num_atoms': 6}, 'saves nothing: choose at most 5'),
        (GROUPED, {'num_atoms': 0}, 'num_atoms must be an integer >= 1, got 0'),
        (GROUPED, {'num_atoms': 2, 'groups': [[0, 1]]}, 'each of the layers 0 to 5 in exactly'),
        (GROUPED, {'num_atoms': 4, 'residual_rank': 8}, r'need .* nothing is saved'),
        (GROUPED, {'num_atoms': 2, 'residual_rank': 9}, r'integers from 0 to 8'),
        (GROUPED, {'num_atoms': 2, 'residual_rank': True}, r'integers from 0 to 16'),
        ({}, {'num_atoms': 2}, r'layout=\{\} is not valid'),
        ({'qkv': ''}, {'num_atoms': 2}, 'is not valid, expected path of a linear layer'),
        ({'qkv': 'qq'}, {'num_atoms': 2}, 'each named once'),
        ({'qkv': ['keys', 'a.b', 'training']}, {'num_atoms': 2}, 'cannot be called .*training'),
    ],
)
def test_bad_arguments_leave_the_blocks_as_they_are(layout, kwargs, message):
    blocks = [Block() for _ in range(6)]
    with pytest.raises(ValueError, match=message):
        compress_linears(blocks, layout, **kwargs)
    assert all(type(block.qkv) is nn.Linear for block in blocks)
    assert not any(hasattr(block, 'coef') for block in blocks)


def test_linear_maps_that_would_lose_something():
    class Lora(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    def blocks() -> list[Block]:
        return [Block() for _ in range(6)]

    lora, parametrized, shared = blocks(), blocks(), blocks()
    lora[1].qkv = Lora(16, 32)
    nn.utils.parametrizations.weight_norm(parametrized[2].qkv)
    compress_linears(shared, GROUPED, 2)
    coefs = shared[3].coef
    for block in shared:
        block.proj = nn.Linear(16, 16)
    with pytest.raises(ValueError, match=r"block 1: 'qkv' is a Lora, .*merge LoRA first"):
        compress_linears(lora, GROUPED, 2)
    with pytest.raises(ValueError, match=r"block 2: the weight of 'qkv' .*remove_parametrizations"):
        compress_linears(parametrized, GROUPED, 2)
    with pytest.raises(ValueError, match='share all linear layers of a module in one call'):
        compress_linears(shared, {'proj': 'o'}, 2)
    with pytest.raises(ValueError, match='blocks is empty'):
        compress_linears([], GROUPED, 2)
    assert shared[3].coef is coefs
    assert type(lora[0].qkv) is type(parametrized[0].qkv) is type(shared[0].proj) is nn.Linear


def test_weights_that_are_not_finite():
    blocks = [Block() for _ in range(6)]
    with torch.no_grad():
        blocks[2].qkv.weight[20, 3] = float('nan')
    with pytest.raises(
        ValueError, match=r"projection 'k': the weights of layers \[2\] are not finite"
    ):
        compress_linears(blocks, GROUPED, 2)
    assert type(blocks[0].qkv) is nn.Linear
