"""From one form of a model to another: compress, bake the coefficients, fold to the plain timm model."""

from masa_vit.convert.bake import bake
from masa_vit.convert.compress import MatrixPCA, compress, matrix_pca
from masa_vit.convert.deploy import load_folded
from masa_vit.convert.fold import fold

__all__ = ['MatrixPCA', 'bake', 'compress', 'fold', 'load_folded', 'matrix_pca']
