"""Models as files that others run: timm's folders, ONNX, `torch.export`, each checked before it stays.

Needs torch and timm; ONNX needs the extra `export`.
"""

from masa_vit.export.check import TOLERANCE, Exported, ExportError
from masa_vit.export.folder import export_folded, export_hub
from masa_vit.export.graph import export_onnx, export_torch

__all__ = [
    'TOLERANCE',
    'ExportError',
    'Exported',
    'export_folded',
    'export_hub',
    'export_onnx',
    'export_torch',
]
