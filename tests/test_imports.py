"""Which packages an import pulls in: the base install is torch, timm and safetensors."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    'mmengine',
    'mmcv',
    'mmdet',
    'albumentations',
    'cv2',
    'sklearn',
    'matplotlib',
    'tensorboard',
)


def test_import_needs_torch_and_timm_only():
    code = (
        'import sys, torch, timm, safetensors\n'
        'before = {name.partition(".")[0] for name in sys.modules}\n'
        'import masa_vit\n'
        'after = {name.partition(".")[0] for name in sys.modules}\n'
        'new = sorted(n for n in after - before if n not in sys.stdlib_module_names)\n'
        'assert new == ["masa_vit"], new\n'
        f'heavy = [n for n in {HEAVY!r} if n in sys.modules]\n'
        'assert not heavy, heavy\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
