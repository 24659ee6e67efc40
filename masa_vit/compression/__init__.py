"""Compress pretrained dense models: Matrix PCA, weighted fits, residuals, alignment."""

from masa_vit.compression.groups import GROUPINGS
from masa_vit.compression.linears import compress_linears
from masa_vit.compression.options import CompressionOptions
from masa_vit.compression.pca import MatrixPCA, gram_matrix, matrix_pca
from masa_vit.compression.pipeline import Compression, compress, compress_with_record

__all__ = [
    'GROUPINGS',
    'Compression',
    'CompressionOptions',
    'MatrixPCA',
    'compress',
    'compress_linears',
    'compress_with_record',
    'gram_matrix',
    'matrix_pca',
]
