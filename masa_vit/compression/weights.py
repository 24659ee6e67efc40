"""The attention weights of a dense model, layer by layer or stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from masa_vit.models.sharing_args import LAYOUT

Weights = Mapping[str, Sequence[torch.Tensor]]
"""Projection -> the weights (out, in) of all layers."""


def dense_weights(model: Any) -> dict[str, list[torch.Tensor]]:
    """Name -> the weights (out, in) of all layers, views into the model's own."""
    return {
        name: [
            block.get_submodule(path).weight.detach().chunk(len(names))[index]
            for block in model.blocks
        ]
        for path, names in LAYOUT.items()
        for index, name in enumerate(names)
    }


def stacked_weights(model: Any) -> dict[str, torch.Tensor]:
    """Name -> the weights of all layers (L, out, in), float64, on the CPU."""
    return {name: stack(rows, 'cpu') for name, rows in dense_weights(model).items()}


def stack(rows: Sequence[torch.Tensor], device: str | None = None) -> torch.Tensor:
    """The weights (out, in) of some layers as one tensor (L, out, in), float64, on their device."""
    return torch.stack([row.to(device, torch.float64) for row in rows])
