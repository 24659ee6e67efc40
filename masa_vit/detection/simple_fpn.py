"""A feature pyramid out of the one map of a plain vision transformer.

Paper: `Exploring Plain Vision Transformer Backbones for Object Detection`
    - https://arxiv.org/abs/2203.16527, section 3
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn import functional as F

# for norm_cfg=dict(type='LayerNorm2d') of mmdet's heads
MODELS.register_module(module=LayerNorm2d)


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Levels of stride 4, 8, 16, 32, 64 (or others) from a map of stride 16.

    For strides 4 to 32 the map is deconvolved twice, once, kept or max-pooled, and passes a 1x1 and a
    3x3 convolution with layer norms; further levels are subsampled from the last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int | None = None,
        init_cfg: dict | list[dict] | None = None,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
    ) -> None:
        """Build the neck.

        Args:
            in_channels: Channels of the map, the backbone's `embed_dim`; a multiple of 4.
            out_channels: Channels of each level.
            num_outs: Number of levels, if not that of `strides`: each has twice the stride of the one
                before.
            init_cfg: As in mmengine; default: torch's own initialisation, as in the paper's code.
            strides: Strides of the levels, those of the heads: 4, 8, 16, ... for two-stage detectors,
                8, 16, 32, 64, 128 for most one-stage heads of mmdet.

        Raises:
            ValueError: For channels or a number of levels outside these ranges.
        """
        super().__init__(init_cfg)
        if not isinstance(in_channels, int) or in_channels < 4 or in_channels % 4:
            raise ValueError(
                f'SimpleFPN: in_channels={in_channels!r}; expected one number, the embed_dim of the '
                'backbone, a multiple of 4'
            )
        if num_outs is not None:
            strides = [strides[0] * 2**level for level in range(num_outs)]
        if [*strides] != [
            first * 2**level for first in strides[:1] for level in range(len(strides))
        ]:
            raise ValueError(f'SimpleFPN: strides={strides}; expected each twice the one before')
        if not strides or strides[0] not in (4, 8, 16, 32) or strides[-1] < 32:
            raise ValueError(
                f'SimpleFPN: strides={strides}; expected the first to be 4, 8, 16 or 32, and the last '
                '32 or more'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.strides = tuple(strides)
        resized = [stride for stride in strides if stride <= 32]
        resize = [_resize(in_channels, stride) for stride in resized]
        widths = {4: in_channels // 4, 8: in_channels // 2}
        self.levels = nn.ModuleList(
            nn.Sequential(
                layer,
                nn.Conv2d(widths.get(stride, in_channels), out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for layer, stride in zip(resize, resized, strict=True)
        )

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Make the levels.

        Args:
            inputs: One map (B, in_channels, H, W) of stride 16.

        Returns:
            Maps (B, out_channels, ., .), by default of 4H x 4W, 2H x 2W, H x W, H/2 x W/2, ...

        Raises:
            ValueError: If there is more than one map.
        """
        if len(inputs) != 1:
            raise ValueError(
                f'SimpleFPN makes its levels from one map, got {len(inputs)}: give the backbone one '
                'index in out_indices'
            )
        outs = [level(inputs[0]) for level in self.levels]
        while len(outs) < len(self.strides):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _resize(channels: int, stride: int) -> nn.Module:
    """Return the layer from a map of stride 16 to one of 4, 8, 16 or 32."""
    half, quarter = channels // 2, channels // 4
    if stride == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, 2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
    if stride == 8:
        return nn.ConvTranspose2d(channels, half, 2, 2)
    return nn.Identity() if stride == 16 else nn.MaxPool2d(2, 2)
