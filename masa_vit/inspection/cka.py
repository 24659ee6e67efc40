"""Similarity of the outputs of blocks: centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from masa_vit.inspection.activations import Batch, evaluating, not_a_transformer, split_batch


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the similarity of two representations of the same examples: 1, or about 0 if unrelated.

    Linear centred kernel alignment (Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414) by
    the unbiased estimate of HSIC (Song et al., JMLR 2012; for CKA in Nguyen et al., ICLR 2021,
    https://arxiv.org/abs/2010.15327): the plain one is far above 0 for unrelated representations unless
    there are many more examples than features (0.86 for 128 examples of 768). Invariant to rotations
    and to one scale of either. By chance it can be a little below 0. 0 where one does not vary.

    Args:
        x: (n, d1).
        y: (n, d2).

    Raises:
        ValueError: If these are not two matrices with as many rows, at least 4.
    """
    return _cka([x], [y]).item()


def layer_cka(
    model: nn.Module, batches: Iterable[Batch], other: nn.Module | None = None
) -> torch.Tensor:
    """Return `linear_cka` between the outputs of every pair of blocks.

    An image counts as one example: the mean of the block's output over the patches, before the final
    norm (our choice; prefix tokens are left out, so that models with and without compare).

    Args:
        model: A vision transformer of timm, or ours, in any mode.
        batches: Read once. L n^2 numbers are kept, of n images. Classes are ignored.
        other: A second model for the same images. Default: the first.

    Returns:
        (L, L of `other`), float32, on the CPU.

    Raises:
        TypeError: If a model has not a stack of blocks.
        ValueError: If there are fewer than four images.
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
    numbers = {len(z) for z in (*xs, *(ys or []))}
    if len(numbers) > 1 or min(numbers) < 4:
        raise ValueError(
            f'representations have {sorted(numbers)} examples: expected as many of each, at least 4'
        )
    x_units = torch.stack([_unit_gram(x) for x in xs])  # (layers, n^2)
    y_units = x_units if ys is None else torch.stack([_unit_gram(y) for y in ys])
    return x_units @ y_units.T


def _unit_gram(features: torch.Tensor) -> torch.Tensor:
    """Inner products of n examples, as a unit vector (n^2,), so centred that HSIC is without bias.

    The product of two such vectors is Song et al.'s estimate, normalised (U-centring, Szekely & Rizzo,
    Ann. Statist. 2014).
    """
    if features.dim() != 2:
        raise ValueError(
            f'a representation has shape {tuple(features.shape)}, expected (examples, features)'
        )
    features = features.detach().cpu().double()
    features = features - features.mean(0)  # for precision: U-centring does it as well
    gram = (features @ features.T).fill_diagonal_(0)
    n = len(gram)
    sums = gram.sum(0)
    gram = gram - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    gram = gram.fill_diagonal_(0).flatten()
    return gram / gram.norm().clamp_min(1e-300)
