"""What a classifier would say after each of its blocks: the logit lens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ['logit_lens']


@torch.no_grad()
def logit_lens(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Return the distribution over classes that every block's output gives, averaged over images.

    The output of each block goes through the model's own final norm, pooling (class token, mean,
    ...) and head; the softmax is averaged over the images. It is what `kl_groups` takes.

    Args:
        model: A `VisionTransformer` of timm, or a MASA model, with a head. Runs in evaluation mode,
            and is left in the mode that it was in.
        batches: Calibration images (B, 3, height, width), preprocessed as for the model; moved to
            its device and dtype.

    Returns:
        (L, num_classes), float64, on the CPU. The last row is what the model itself says.

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.
        ValueError: If it has no head, there are no images, or an output is not finite.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(f'expected a VisionTransformer of timm, got {type(model).__name__}')
    vit: Any = model
    if vit.num_classes < 1 or isinstance(vit.head, nn.Identity):
        raise ValueError(
            f'num_classes={vit.num_classes}: the logit lens needs a head. Take a model with one, or '
            'group the layers by hand, uniformly or by their weights'
        )
    total = torch.zeros(len(vit.blocks), vit.num_classes, dtype=torch.float64, device='cpu')
    seen = 0

    def look(index: int, output: Tensor) -> None:
        logits = vit.forward_head(vit.norm(output))
        total[index] += logits.cpu().double().softmax(-1).sum(0)

    hooks = [
        block.register_forward_hook(lambda _, __, output, index=index: look(index, output))
        for index, block in enumerate(vit.blocks)
    ]
    modes = {module: module.training for module in vit.modules()}
    param = next(vit.parameters())
    try:
        vit.eval()
        for images in batches:
            seen += len(images)
            vit(images.to(param))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise ValueError('no calibration images: the batches are empty')
    if bad := (~total.isfinite()).any(1).nonzero().flatten().tolist():
        raise ValueError(f'blocks {bad} give values that are not finite for these images')
    return total / seen
