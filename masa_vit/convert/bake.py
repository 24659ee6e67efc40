"""Replace generated coefficients by the numbers that they are."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from masa_vit.layers import DirectCoefficients, MlpCoefficients, SharedLinear
from masa_vit.models.vision_transformer import MasaVisionTransformer

ModelT = TypeVar('ModelT', bound=nn.Module)


def bake(model: ModelT) -> ModelT:
    """Drop the coefficient MLP and keep the C that it computes, as the paper does after training.

    Block embeddings and MLP are replaced by trainable direct coefficients of the same values. The
    output does not change (within 1e-6). Models without an MLP are left as they are, and so are
    frozen coefficients.

    Args:
        model: A MASA model, or any module that holds some. Changed in place.

    Returns:
        The same module.
    """
    for masa in [m for m in model.modules() if isinstance(m, MasaVisionTransformer)]:
        for block in masa.blocks:
            if isinstance(block.coef, MlpCoefficients):
                block.coef = DirectCoefficients(block.coef.values()).train(block.training)
                for module in block.modules():
                    if isinstance(module, SharedLinear):
                        module.draw_on(block.coef)
        masa.generator = None
        args = getattr(masa, '_model_args', None)  # timm's record of how to create this model again
        if args and args.get('coefficients') == 'mlp':
            masa._model_args = {**args, 'coefficients': 'direct'}
    return model
