"""Bilinear sampling of one point, for the references of the operators."""

from __future__ import annotations

import math

from torch import Tensor


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """image (C, H, W) at one point; there are zeros around it."""
    top, left = math.floor(y.item()), math.floor(x.item())
    value = image.new_zeros(len(image))
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value = value + image[:, row, column] * share_y * share_x
    return value
