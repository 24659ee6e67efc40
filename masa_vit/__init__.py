"""Vision transformers whose attention weights are shared across layers (MASA).

Importing the package registers the models with timm::

    import masa_vit
    import timm

    model = timm.create_model('vit_base_masa_s4')
"""

from masa_vit.compression import compress
from masa_vit.export import bake, fold, load_folded
from masa_vit.models import MasaVisionTransformer, load_weights

__version__ = '0.2.0.dev0'

__all__ = [
    'MasaVisionTransformer',
    '__version__',
    'bake',
    'compress',
    'fold',
    'load_folded',
    'load_weights',
]
