"""From one form of a model to another: bake the coefficients, fold to the plain timm model."""

from masa_vit.convert.bake import bake
from masa_vit.convert.fold import fold, load_folded

__all__ = ['bake', 'fold', 'load_folded']
