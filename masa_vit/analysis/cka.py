"""How alike the layers of vision transformers are, by what they make of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from masa_vit.analysis.activations import Batch, evaluating, not_a_transformer, split_batch


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return how alike two representations of the same examples are, from 0 to 1.

    Linear centred kernel alignment, ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` in Frobenius norms, of centred
    features (Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414). Invariant to rotations
    and to one scale of either. It is biased upwards unless there are many more examples than
    features: compare only values of equal n. 0 where one does not vary.

    Args:
        x: (n, d1).
        y: (n, d2).

    Raises:
        ValueError: If these are not two matrices with as many rows, at least 2.
    """
    return _cka([x], [y]).item()


def layer_cka(
    model: nn.Module, batches: Iterable[Batch], other: nn.Module | None = None
) -> torch.Tensor:
    """Return how alike the outputs of blocks are: `linear_cka` of every pair.

    An image counts as one example: the mean of the block's output over the patches, before the final
    norm (our choice; prefix tokens are left out, so that models with and without compare).

    Args:
        model: A vision transformer of timm, or ours, in any mode.
        batches: Read once. Of every image, L vectors are kept. Classes are ignored.
        other: A second model for the same images. Default: the first.

    Returns:
        (L, L of `other`), float32, on the CPU.

    Raises:
        TypeError: If a model has not a stack of blocks.
        ValueError: If there are fewer than two images.
    """
    models = [model] if other is None else [model, other]
    features: list[list[list[torch.Tensor]]] = [[] for _ in models]
    for batch in batches:
        images = split_batch(batch)[0]
        for kept, source in zip(features, models, strict=True):
            kept.append(_pooled_outputs(source, images))
    if not features[0]:
        raise ValueError('no images: the batches are empty')
    stacks = [[torch.cat(of_layer) for of_layer in zip(*kept, strict=True)] for kept in features]
    return _cka(*stacks).float()


def _pooled_outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The output of every block, as the mean over its patches (B, C)."""
    stack: Any = model
    if not (hasattr(model, 'blocks') and hasattr(model, 'forward_intermediates')):
        raise TypeError(not_a_transformer(model, 'no `blocks` and `forward_intermediates`'))
    with evaluating(model):
        outputs = stack.forward_intermediates(
            images.to(next(model.parameters())), output_fmt='NLC', intermediates_only=True
        )
    return [output.float().mean(1).cpu() for output in outputs]


def _cka(xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
    """Linear CKA of every x with every y (default: the x), float64."""
    xs = [_centred(x) for x in xs]
    ys = xs if ys is None else [_centred(y) for y in ys]
    numbers = {len(z) for z in (*xs, *ys)}
    if len(numbers) > 1 or min(numbers) < 2:
        raise ValueError(
            f'representations have {sorted(numbers)} examples: expected as many of each, at least 2'
        )
    if numbers.pop() <= max(z.shape[1] for z in (*xs, *ys)):
        # |Y^T X|^2 = <X X^T, Y Y^T>: one product (n, n) for each x and y, none for each pair
        x_units = _unit(torch.stack([(x @ x.T).flatten() for x in xs]))
        y_units = x_units if ys is xs else _unit(torch.stack([(y @ y.T).flatten() for y in ys]))
        return x_units.mm(y_units.T).clamp(0, 1)
    products = torch.zeros(len(xs), len(ys), dtype=torch.float64)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            mirrored = ys is xs and j < i
            products[i, j] = products[j, i] if mirrored else (y.T @ x).square().sum()
    x_norms, y_norms = (
        torch.stack([(z.T @ z).norm() for z in zs]).clamp_min(1e-300) for zs in (xs, ys)
    )
    return (products / x_norms[:, None] / y_norms).clamp(0, 1)


def _centred(features: torch.Tensor) -> torch.Tensor:
    if features.dim() != 2:
        raise ValueError(
            f'a representation has shape {tuple(features.shape)}, expected (examples, features)'
        )
    features = features.detach().cpu().double()
    return features - features.mean(0)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
