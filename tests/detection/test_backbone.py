"""The backbone against timm's own forward pass, and what users of mmdet expect of a backbone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from tiny_backbone import ARGS, NAMES, build
from torch import nn

import masa_vit
from masa_vit.detection import MasaViT


def grads(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
def test_without_windows_equals_timm(name: str, size: tuple[int, int]) -> None:
    backbone = build(name, window_size=0, out_indices=(1, -1)).eval()
    model = timm.create_model(
        name,
        **ARGS,
        class_token=False,
        global_pool='',
        num_classes=0,
        final_norm=False,
        dynamic_img_size=True,
    ).eval()
    model.load_state_dict(backbone.vit.state_dict())
    images = torch.randn(2, 3, *size)
    expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    for out, reference in zip(backbone(images), expected, strict=True):
        assert out.shape == (2, 32, size[0] // 8, size[1] // 8)
        assert out.is_contiguous()
        torch.testing.assert_close(out, reference)


def windowed_reference(attn: nn.Module, x: torch.Tensor, size: int) -> torch.Tensor:
    """Attention window by window, by slicing a padded map (B, H, W, C)."""
    batch, height, width, channels = x.shape
    padded = x.new_zeros(batch, -(-height // size) * size, -(-width // size) * size, channels)
    padded[:, :height, :width] = x
    out = torch.empty_like(padded)
    for top in range(0, padded.shape[1], size):
        for left in range(0, padded.shape[2], size):
            window = padded[:, top : top + size, left : left + size]
            tokens = window.reshape(batch, size * size, channels)
            done = timm.layers.Attention.forward(attn, tokens)
            out[:, top : top + size, left : left + size] = done.view_as(window)
    return out[:, :height, :width]


@pytest.mark.parametrize('hw', [(6, 6), (8, 8), (5, 7), (2, 1)])
def test_windows_equal_a_loop_over_slices(hw: tuple[int, int]) -> None:
    attn = build().eval().vit.blocks[1].attn
    attn.window_size = 3
    x = torch.randn(2, *hw, 32)
    torch.testing.assert_close(attn(x), windowed_reference(attn, x, 3))


def test_global_blocks() -> None:
    def windows(**kwargs: Any) -> list[int]:
        return [block.attn.window_size for block in build(**kwargs).vit.blocks]

    assert windows() == [0, 0, 0, 0]  # the last of each quarter of 4 blocks
    assert windows(model_args={'depth': 12}) == [3, 3, 0] * 4
    assert windows(global_attn_indexes=[-1, 1]) == [3, 0, 3, 0]
    assert windows(global_attn_indexes=[]) == [3] * 4
    assert windows(global_attn_indexes=[1], out_indices=2) == [3, 0, 3]


@pytest.mark.parametrize('size', [(50, 70), (64, 33), (7, 8)])
def test_any_size(size: tuple[int, int]) -> None:
    backbone = build(global_attn_indexes=[3])
    (out,) = backbone(torch.randn(1, 3, *size))
    assert out.shape == (1, 32, -(-size[0] // 8), -(-size[1] // 8))


def test_padding_of_images_is_cropped_away_at_the_bottom_right() -> None:
    """An image that the patches do not tile is one that zeros complete."""
    backbone = build().eval()
    image = torch.randn(1, 3, 50, 60)
    padded = nn.functional.pad(image, (0, 4, 0, 6))
    torch.testing.assert_close(backbone(image)[0], backbone(padded)[0])


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    backbone = build(name, out_indices=(0, 2))
    sum(out.sum() for out in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert len(backbone.vit.blocks) == 3, 'blocks after the last output are dropped'
    assert all(grad is not None for grad in grads(backbone).values())


@pytest.mark.parametrize('name', NAMES)
def test_with_cp_gives_the_same_gradients(name: str) -> None:
    plain = build(name, global_attn_indexes=[3])
    saving = build(name, global_attn_indexes=[3], with_cp=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        model(images)[0].square().mean().backward()
    expected = grads(plain)
    for key, grad in grads(saving).items():
        torch.testing.assert_close(grad, expected[key])


def trainable(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.requires_grad]


def test_frozen_stages(caplog: pytest.LogCaptureFixture) -> None:
    backbone = build(frozen_stages=2, drop_path_rate=0.5)
    names = trainable(backbone.vit)
    frozen = ('pos_embed', 'patch_embed.', 'blocks.0.', 'blocks.1.')
    assert not [name for name in names if name.startswith(frozen)]
    assert {name.split('.')[1] for name in names if name.startswith('blocks')} == {
        '2',
        '3',
        'attn_banks',
    }
    assert 'blocks.attn_banks.q.atoms' in names
    backbone.train()
    assert not backbone.vit.blocks[1].training
    assert not backbone.vit.patch_embed.training
    assert backbone.vit.blocks[2].training
    assert 'vit.blocks.attn_banks.q.atoms' not in trainable(
        build(frozen_stages=2, freeze_atoms=True)
    )
    assert not trainable(build(frozen_stages=4, freeze_atoms=True))
    assert 'vit.pos_embed' not in trainable(build(frozen_stages=0))
    assert len(trainable(build(frozen_stages=0))) == len(trainable(build())) - 3


def test_frozen_blocks_over_trained_atoms_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr('masa_vit.detection.backbone.print_log', lambda text, *_: told.append(text))
    sixteen = {'patch_size': 16}
    build(frozen_stages=2, model_args=sixteen)
    assert 'freeze_atoms=True' in told.pop()
    build(frozen_stages=2, freeze_atoms=True, model_args=sixteen)
    build('vit_tiny_patch16_224', frozen_stages=2, freeze_atoms=True, model_args=sixteen)
    assert not told


def test_frozen_atoms_with_an_mlp() -> None:
    args = {'coefficients': 'mlp'}
    assert not trainable(build(frozen_stages=4, freeze_atoms=True, model_args=args))
    left = trainable(build(frozen_stages=3, freeze_atoms=True, model_args=args))
    assert {name.split('.')[2] for name in left} == {'3'}


def test_patches_of_another_size_are_told(logged: list[tuple[str, int]]) -> None:
    build()
    assert 'patch_size=16' in logged.pop()[0]
    build(model_args={'patch_size': 16})
    assert not logged


def test_frozen_weights_stay() -> None:
    backbone = build(frozen_stages=2, freeze_atoms=True)
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone.train()(torch.randn(1, 3, 64, 64))[0].sum().backward()
    optimizer.step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith(('vit.blocks.2.', 'vit.blocks.3.')) for name in changed)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(model_name='vit_tiny_massa_s2'), "'vit_tiny_massa_s2'.*vit_tiny_masa_s2"),
        (dict(out_indices=4), r'out_indices=4.*0 to 3'),
        (dict(out_indices=(0, -4)), r'out_indices=\(0, -4\).*different'),
        (dict(out_indices=()), r'out_indices=\(\)'),
        (dict(frozen_stages=5), 'frozen_stages=5.*4'),
        (dict(window_size=-1), 'window_size=-1'),
        (dict(window_size=(3, 3)), r'window_size=\(3, 3\)'),
        (dict(global_attn_indexes=[4]), r'\[4\].*0 to 3'),
        (dict(model_args={'num_classes': 3}), 'num_classes'),
        (dict(model_args={'num_atom': 3}), 'num_atoms'),
        (dict(init_cfg=dict(type='Normal', layer='Linear')), 'Pretrained'),
        (dict(init_cfg=dict(type='Pretrained')), 'checkpoint'),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    model_args = {**ARGS, **kwargs.pop('model_args', {})}
    with pytest.raises(ValueError, match=message):
        MasaViT(**{'model_name': 'vit_tiny_masa_s2', 'model_args': model_args, **kwargs})


@pytest.mark.parametrize(
    'name',
    [
        'resnet18',
        'eva02_tiny_patch14_224',
        'swin_tiny_patch4_window7_224',
        'vit_dlittle_patch16_reg1_gap_256',
    ],
)
def test_other_families_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f'{name}.*plain attention'):
        MasaViT(name)


def test_the_check_of_the_family_draws_no_random_number() -> None:
    torch.manual_seed(0)
    weight = build().vit.banks.q.atoms
    torch.manual_seed(0)
    created = timm.create_model(
        'vit_tiny_masa_s2',
        **ARGS,
        num_classes=0,
        class_token=False,
        global_pool='',
        final_norm=False,
    )
    assert torch.equal(weight, created.banks.q.atoms)


def test_windows_without_padding() -> None:
    backbone = build(pad_windows=False, global_attn_indexes=[])
    backbone(torch.zeros(1, 3, 48, 72))
    with pytest.raises(
        ValueError, match=r'3 x 3 tokens do not tile a map of 8 x 8.*pad_size_divisor'
    ):
        backbone(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize('name', NAMES)
def test_fold_gives_the_dense_baseline(name: str) -> None:
    backbone = build(name, global_attn_indexes=[1]).eval()
    images = torch.randn(1, 3, 50, 64)
    if name == 'vit_tiny_patch16_224':
        with pytest.raises(ValueError, match='nothing is shared'):
            masa_vit.fold(backbone)
        return
    folded = masa_vit.fold(backbone)
    torch.testing.assert_close(folded(images)[0], backbone(images)[0], atol=0, rtol=0)
    other = build('vit_tiny_patch16_224', global_attn_indexes=[1]).eval()
    other.load_state_dict(folded.state_dict())
    torch.testing.assert_close(other(images)[0], backbone(images)[0])


def test_is_built_by_mmdets_registry_and_unseen_by_its_class_check() -> None:
    from mmdet.registry import MODELS

    backbone = MODELS.build(dict(type='MasaViT', model_name='vit_tiny_masa_s2', model_args=ARGS))
    assert not [n for n, m in backbone.named_modules() if hasattr(m, 'num_classes')]


def test_deepcopy_and_autocast() -> None:
    backbone = copy.deepcopy(build()).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = backbone(images)[0]
    with torch.autocast('cpu', torch.bfloat16):
        (out,) = backbone(images)
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)
