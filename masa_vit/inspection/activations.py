"""Attention maps and attention distances of vision transformers, timm's and ours, folded or not.

A model runs in evaluation mode without gradients; the modes of its modules are restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from masa_vit.layers import SharedBlocks

Batch = torch.Tensor | Sequence[torch.Tensor]
"""Images (B, 3, H, W) as the model takes them (normalised), or a tuple of them and classes (B,)."""

_ATTENTION = ('num_heads', 'attn_drop', 'fused_attn')


def attention_maps(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the attention of every block, after the softmax: rows (queries) sum to one.

    The input of the attention's dropout is read, not computed a second time: q and k norms, rotary
    embeddings and biases are included. For this pass the blocks attend without timm's fused kernel,
    which equals it up to rounding.

    The maps have ``L * H * N^2`` numbers for each image (59 MB in float32 for ViT-L/16 at 224 pixels).

    Args:
        model: A vision transformer of timm, or ours, in any mode.
        images: (B, 3, H, W), as the model takes them.

    Returns:
        (L, B, H, N, N) on the CPU, in the dtype of the model; the N tokens are in timm's order: class
        token, other prefix tokens (registers), patches row by row.

    Raises:
        TypeError: If the model has not a stack of blocks with such attention.
    """
    maps: list[torch.Tensor] = []
    _watch_attention(model, images, lambda layer, attention: maps.append(attention.cpu()))
    return torch.stack(maps)


def class_attention(
    maps: torch.Tensor,
    num_prefix_tokens: int,
    grid: tuple[int, int],
    has_class_token: bool | None = None,
) -> torch.Tensor:
    """Return the attention of the class token to each patch.

    Without a class token: the mean over the patches as queries. The sum is less than one, since the
    prefix tokens are attended to as well.

    Args:
        maps: (L, B, H, N, N), as `attention_maps` returns.
        num_prefix_tokens: As timm's attribute of the model.
        grid: Rows and columns of patches, as `patch_grid` returns.
        has_class_token: As timm's attribute of the model (prefix tokens may be registers only).
            Default: whether there are prefix tokens.

    Returns:
        (L, B, H, rows, columns).

    Raises:
        ValueError: If the tokens are not prefix tokens and a grid of that size.
    """
    _check_grid(maps.shape[-1], num_prefix_tokens, grid)
    if has_class_token is None:
        has_class_token = num_prefix_tokens > 0
    if has_class_token and not num_prefix_tokens:
        raise ValueError('has_class_token=True, but num_prefix_tokens=0: there is none')
    to_patches = maps[..., num_prefix_tokens:]
    if has_class_token:
        return to_patches[..., 0, :].unflatten(-1, grid)
    return to_patches[..., num_prefix_tokens:, :].mean(-2).unflatten(-1, grid)


def attention_distance(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    """Return the mean attention distance of every head, in pixels.

    The distances from the centre of a patch to those of all patches are averaged with its attention
    as weights; then over patches and images (Dosovitskiy et al., ICLR 2021, Fig. 7,
    https://arxiv.org/abs/2010.11929). Ours: prefix tokens, which have no place, are left out as
    queries and as keys, and the remaining weights are scaled to sum to one.

    Args:
        model: A vision transformer of timm, or ours, in any mode.
        batches: Any number of them, read once; no maps are kept. Classes are ignored.

    Returns:
        (L, H), float32, on the CPU, in pixels of the images that the model takes.

    Raises:
        TypeError: If the model has not a stack of blocks with such attention.
        ValueError: If there are no images.
    """
    total, num_images = None, 0
    with evaluating(model):
        for batch in batches:
            images = split_batch(batch)[0]
            sums = _distance_sums(model, images)
            total = sums if total is None else total + sums
            num_images += len(images)
    if total is None or not num_images:
        raise ValueError('no images: the batches are empty')
    return (total / num_images).float()


def _distance_sums(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The mean distance of every head (L, H), summed over the images of a batch."""
    stack: Any = model
    attention_modules(model)  # says what is wrong with other models
    grid, prefix = patch_grid(model, images), stack.num_prefix_tokens
    distances = patch_distances(grid, stack.patch_embed.feat_ratio(as_scalar=False))
    sums: list[torch.Tensor] = []

    def look(_: int, attention: torch.Tensor) -> None:
        _check_grid(attention.shape[-1], prefix, grid)
        sums.append(mean_distance(attention[..., prefix:, prefix:], distances).sum(0).cpu())

    _watch_attention(model, images, look)
    return torch.stack(sums).double()


def mean_distance(attention: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Average distances by attention, whose rows need not sum to one: (..., n, n) -> (...)."""
    attention = attention.float()
    weighted = (attention * distances.to(attention)).sum(-1)
    # rows that attend only to prefix tokens count as distance zero
    weights = attention.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (weighted / weights).mean(-1)


def patch_distances(grid: tuple[int, int], patch_size: tuple[int, int]) -> torch.Tensor:
    """Distances between the centres of all patches of a grid, in pixels: (n, n)."""
    rows, columns = (
        torch.arange(num, dtype=torch.float32) * size
        for num, size in zip(grid, patch_size, strict=True)
    )
    centres = torch.cartesian_prod(rows, columns)
    return (centres[:, None] - centres).norm(dim=-1)  # cdist would not give exact zeros


def patch_grid(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Return into how many rows and columns of patches a model cuts images (B, 3, H, W)."""
    embed: Any = model.patch_embed
    height, width = images.shape[-2:]
    rows, columns = embed.dynamic_feat_size((height, width))
    return rows, columns


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode without gradients, and restore the mode of every module."""
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def split_batch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return images and, where the batch has them, classes.

    Raises:
        ValueError: If the images are not (B, 3, H, W).
    """
    images, classes = (batch, None) if isinstance(batch, torch.Tensor) else (*batch, None)[:2]
    if not isinstance(images, torch.Tensor) or images.dim() != 4:
        what = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f'a batch has images of {what}, expected (B, 3, H, W): give a list of such tensors, or '
            'of tuples (images, classes)'
        )
    return images, classes


def attention_modules(model: nn.Module) -> list[Any]:
    """Return the attention of every block of a vision transformer.

    Raises:
        TypeError: If there is no stack of blocks, or its attention is of an unknown kind.
    """
    blocks: Any = getattr(model, 'blocks', None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList, SharedBlocks)) or not len(blocks):
        raise TypeError(not_a_transformer(model, 'no `blocks`'))
    for index, block in enumerate(blocks):
        attention = getattr(block, 'attn', None)
        if missing := [name for name in _ATTENTION if not hasattr(attention, name)]:
            what = f'block {index} ({type(block).__name__}) has no `attn` with {missing}'
            raise TypeError(not_a_transformer(model, what))
    return [block.attn for block in blocks]


def not_a_transformer(model: nn.Module, what: str) -> str:
    """Return the message of the error for a model of an unknown kind."""
    return (
        f'{type(model).__name__} is not built like the VisionTransformer of timm: {what}. Give such a '
        'model; of a module that holds one, give that one'
    )


def _watch_attention(
    model: nn.Module, images: torch.Tensor, look: Callable[[int, torch.Tensor], None]
) -> None:
    """Run images, and call ``look(layer, attention (B, H, N, N))`` in each block."""
    attentions = attention_modules(model)
    fused = [attention.fused_attn for attention in attentions]
    seen: list[int] = []

    def before_dropout(layer: int, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        shape = (len(images), attentions[layer].num_heads)
        if args[0].dim() != 4 or args[0].shape[:2] != shape or args[0].shape[2] != args[0].shape[3]:
            kind = type(attentions[layer]).__name__
            found = (
                f'attention of block {layer} ({kind}) is {tuple(args[0].shape)}, not (B, H, N, N)'
            )
            raise TypeError(not_a_transformer(model, found))
        seen.append(layer)
        look(layer, args[0])

    hooks = []
    with evaluating(model):
        try:
            for layer, attention in enumerate(attentions):
                attention.fused_attn = False  # the fused kernel never shows its attention
                hook = partial(before_dropout, layer)
                hooks.append(attention.attn_drop.register_forward_pre_hook(hook))
            model(images.to(next(model.parameters())))
        finally:
            for handle in hooks:
                handle.remove()
            for attention, was_fused in zip(attentions, fused, strict=True):
                attention.fused_attn = was_fused
    if seen != [*range(len(attentions))]:
        raise TypeError(not_a_transformer(model, f'only blocks {seen} showed their attention'))


def _check_grid(num_tokens: int, num_prefix_tokens: int, grid: tuple[int, int]) -> None:
    if num_tokens != num_prefix_tokens + grid[0] * grid[1]:
        raise ValueError(
            f'{num_tokens} tokens are not {num_prefix_tokens} prefix tokens and a grid of '
            f'{grid[0]} x {grid[1]} patches'
        )
