"""Replace generated coefficients by the numbers that they are."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from masa_vit.layers import MlpCoefficients, bake_coefficients

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

    Raises:
        ValueError: If `model` is a part whose coefficients are outside of it.
    """
    recorded = [
        module
        for module in model.modules()
        if isinstance(getattr(module, '_model_args', None), dict)
        and any(isinstance(child, MlpCoefficients) for child in module.modules())
    ]
    bake_coefficients(model)
    for module in recorded:  # timm's record of the arguments of this model
        module._model_args = {**module._model_args, 'coefficients': 'direct'}  # type: ignore
    return model
