"""The attention weights of a dense model, layer by layer or stacked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from masa_vit.layers.linear import Names, projection_sizes
from masa_vit.models.sharing_args import LAYOUT

Weights = Mapping[str, Sequence[torch.Tensor]]
"""Projection -> the weights (out, in) of all layers."""


def linear_weights(
    blocks: Iterable[nn.Module], layout: Mapping[str, Names]
) -> dict[str, list[torch.Tensor]]:
    """Projection -> the weights (out, in) of all blocks, views into those of the linear layers."""
    weights: dict[str, list[torch.Tensor]] = {}
    for block in blocks:
        for path, names in layout.items():
            weight = block.get_parameter(f'{path}.weight').detach()
            for name, rows in zip(
                names, weight.split(projection_sizes(names, len(weight))), strict=True
            ):
                weights.setdefault(name, []).append(rows)
    return weights


def dense_weights(model: Any) -> dict[str, list[torch.Tensor]]:
    """Name -> the weights (out, in) of all layers of a dense model of timm, views into its own."""
    return linear_weights(model.blocks, LAYOUT)


def stacked_weights(model: Any) -> dict[str, torch.Tensor]:
    """Name -> the weights of all layers (L, out, in), float64, on the CPU."""
    return {name: stack(rows, 'cpu') for name, rows in dense_weights(model).items()}


def check_finite(weights: Weights) -> None:
    """Raise ValueError if weights hold NaN or infinity."""
    for name, rows in weights.items():
        if bad := [layer for layer, row in enumerate(rows) if not row.isfinite().all()]:
            raise ValueError(f'projection {name!r}: the weights of layers {bad} are not finite')


def stack(rows: Sequence[torch.Tensor], device: str | None = None) -> torch.Tensor:
    """The weights (out, in) of some layers as one tensor (L, out, in), float64, on their device."""
    return torch.stack([row.to(device, torch.float64) for row in rows])
