"""From one form of a model to another: bake the coefficients, fold to the plain timm model."""

from masa_vit.convert.bake import bake
from masa_vit.convert.deploy import load_folded
from masa_vit.convert.fold import fold

__all__ = ['bake', 'fold', 'load_folded']
