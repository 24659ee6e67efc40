"""The pyramid out of one map."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from masa_vit.detection import SimpleFPN


def test_levels() -> None:
    neck = SimpleFPN(in_channels=16, out_channels=8)
    outs = neck((torch.randn(2, 16, 6, 7),))
    assert [out.shape[1:] for out in outs] == [
        (8, 24, 28), (8, 12, 14), (8, 6, 7), (8, 3, 3), (8, 2, 2),
    ]  # fmt: skip
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize('strides', [(8, 16, 32, 64, 128), (16, 32), (32, 64), (4, 8, 16, 32)])
def test_strides(strides: tuple[int, ...]) -> None:
    outs = SimpleFPN(8, 4, strides=strides)([torch.randn(1, 8, 16, 16)])
    assert [256 // out.shape[-1] for out in outs] == [*strides]


def test_each_level_is_a_resize_and_two_normed_convolutions() -> None:
    neck = SimpleFPN(in_channels=8, out_channels=4, num_outs=4).eval()
    x = torch.randn(1, 8, 4, 4)
    resize, narrow, norm, conv, last = neck.levels[3]
    expected = last(conv(norm(narrow(torch.nn.functional.max_pool2d(x, 2)))))
    torch.testing.assert_close(neck([x])[3], expected)
    assert type(resize) is torch.nn.MaxPool2d
    # layer norm over channels, at every place
    out = neck([x])[0]
    torch.testing.assert_close(out.mean(1), torch.zeros(1, 16, 16), atol=1e-5, rtol=0)


def test_number_of_levels() -> None:
    assert len(SimpleFPN(8, 4, num_outs=4)([torch.randn(1, 8, 2, 2)])) == 4
    assert len(SimpleFPN(8, 4, num_outs=6)([torch.randn(1, 8, 8, 8)])) == 6


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=6), 'in_channels=6.*multiple of 4'),
        (dict(in_channels=[8, 8]), r'in_channels=\[8, 8\]'),
        (dict(in_channels=8, num_outs=3), r'strides=\[4, 8, 16\].*the last 32'),
        (dict(in_channels=8, strides=[8, 16, 64]), 'each twice the one before'),
        (dict(in_channels=8, strides=[2, 4, 8, 16, 32]), 'the first to be 4, 8, 16 or 32'),
        (dict(in_channels=8, strides=[]), 'expected the first'),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimpleFPN(**kwargs)


def test_several_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r'got 2.*out_indices'):
        SimpleFPN(8)([torch.zeros(1, 8, 2, 2)] * 2)


def test_is_built_by_mmdets_registry_with_its_norm() -> None:
    from mmcv.cnn import ConvModule
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        MODELS.build(dict(type='SimpleFPN', in_channels=8))
        conv = ConvModule(3, 4, 1, norm_cfg=dict(type='LayerNorm2d'))
    assert conv(torch.randn(1, 3, 2, 2)).shape == (1, 4, 2, 2)
