"""MASA models in timm's registry, and reading their weights (needs torch, timm and safetensors)."""

from masa_vit.models.factory import create_timm_model
from masa_vit.models.loading import LoadReport, load_exactly, load_weights, read_state_dict
from masa_vit.models.vision_transformer_masa import MasaVisionTransformer, dense_architecture

__all__ = [
    'LoadReport',
    'MasaVisionTransformer',
    'create_timm_model',
    'dense_architecture',
    'load_exactly',
    'load_weights',
    'read_state_dict',
]
