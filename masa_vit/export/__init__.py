"""Fold, bake and export models: timm's folders, ONNX, `torch.export`, each file verified.

Needs torch and timm; ONNX needs the extra `export`.
"""

from masa_vit.export.baking import bake
from masa_vit.export.folding import fold, load_folded
from masa_vit.export.graph import export_onnx, export_torch
from masa_vit.export.hub_folder import export_folded, export_hub
from masa_vit.export.parity import TOLERANCE, Exported, ExportError

__all__ = [
    'TOLERANCE',
    'ExportError',
    'Exported',
    'bake',
    'export_folded',
    'export_hub',
    'export_onnx',
    'export_torch',
    'fold',
    'load_folded',
]
