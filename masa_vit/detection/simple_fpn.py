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
    """Levels of stride 4, 8, 16, 32, 64 from a map of stride 16.

    The map is deconvolved (twice, once), kept and max-pooled, each of these levels passes a 1x1 and
    a 3x3 convolution with layer norms, and further levels are subsampled from the last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        """Build the neck.

        Args:
            in_channels: Channels of the map, the backbone's `embed_dim`; a multiple of 4.
            out_channels: Channels of each level.
            num_outs: Number of levels, 4 or more.
            init_cfg: As in mmengine; default: torch's own initialisation, as in the paper's code.

        Raises:
            ValueError: For channels or a number of levels outside these ranges.
        """
        super().__init__(init_cfg)
        if not isinstance(in_channels, int) or in_channels < 4 or in_channels % 4:
            raise ValueError(
                f'SimpleFPN: in_channels={in_channels!r}; expected one number, the embed_dim of the '
                'backbone, a multiple of 4'
            )
        if num_outs < 4:
            raise ValueError(
                f'SimpleFPN: num_outs={num_outs}; expected 4 (strides 4 to 32) or more'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        resize = [
            nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, 2),
                LayerNorm2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ),
            nn.ConvTranspose2d(in_channels, half, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                stage,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for stage, channels in zip(
                resize, (quarter, half, in_channels, in_channels), strict=True
            )
        )

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Make the levels.

        Args:
            inputs: One map (B, in_channels, H, W) of stride 16.

        Returns:
            Maps (B, out_channels, 4H, 4W), (2H, 2W), (H, W), (H // 2, W // 2), ..., finest first.

        Raises:
            ValueError: If there is more than one map.
        """
        if len(inputs) != 1:
            raise ValueError(
                f'SimpleFPN makes its levels from one map, got {len(inputs)}: give the backbone one '
                'index in out_indices'
            )
        outs = [level(inputs[0]) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
