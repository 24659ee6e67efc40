"""timm's attention on maps of tokens, global or inside windows."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Attention
from timm.models.vision_transformer_sam import window_partition, window_unpartition


class WindowedAttention(Attention):
    """Self-attention over a map of tokens (B, H, W, C): over all of it, or inside square windows.

    Parameters and arguments are those of timm's `Attention`, so that weights move between the two;
    `window_size` and `pad` are set on the module by whoever builds the model.

    A map that the windows do not tile is padded with zeros at the bottom and on the right, and
    cropped back. As in ViTDet the padding takes part in the attention of its window.
    """

    window_size: int = 0
    """Side of a window in tokens; 0 for attention over the whole map."""

    pad: bool = True

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Attend, (B, H, W, C) -> (B, H, W, C).

        Raises:
            ValueError: If the windows do not tile the map and padding is switched off.
        """
        height, width = x.shape[1:3]
        size = self.window_size
        if not size:
            return super().forward(x.flatten(1, 2), *args, **kwargs).view_as(x)
        if not self.pad and (height % size or width % size):
            raise ValueError(
                f'windows of {size} x {size} tokens do not tile a map of {height} x {width} tokens, '
                'and pad_windows=False: pad the images to a multiple of patch_size * window_size '
                '(pad_size_divisor of the data_preprocessor), or set pad_windows=True'
            )
        windows, padded = window_partition(x, size)  # (B * windows, size, size, C)
        windows = super().forward(windows.flatten(1, 2), *args, **kwargs).view_as(windows)
        return window_unpartition(windows, size, (height, width), padded)
