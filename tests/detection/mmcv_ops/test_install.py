"""How the stand-in for mmcv._ext comes into place, and what it refuses."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import mmcv
import mmcv.ops
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from torch import Tensor

from masa_vit.detection import mmcv_ops
from masa_vit.detection.mmcv_ops import common


def test_other_operators_refuse_by_name():
    with pytest.raises(NotImplementedError, match=r"'carafe_forward'.*mmwheels.*the build steps"):
        mmcv.ops.carafe(torch.randn(1, 4, 4, 4), torch.randn(1, 25, 8, 8), 5, 1, 2)


def test_max_roi_align_refuses():
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'"):
        mmcv.ops.RoIAlign(2, pool_mode='max')(
            torch.randn(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]])
        )


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process as before `install`, and without compiled operators if it has any."""
    finders = [f for f in sys.meta_path if not isinstance(f, mmcv_ops._Finder)]
    monkeypatch.setattr(sys, 'meta_path', finders)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(mmcv, '_ext', None, raising=False)
    monkeypatch.setattr(mmcv, '__path__', [])
    return monkeypatch


@pytest.mark.usefixtures('uninstalled')
def test_install_is_idempotent():
    assert mmcv_ops.install()
    module, finders = sys.modules['mmcv._ext'], list(sys.meta_path)
    assert mmcv_ops.install()
    assert sys.modules['mmcv._ext'] is module is mmcv._ext
    assert sys.meta_path == finders
    assert module.nms is common.OPERATORS['nms']
    assert hasattr(module, 'any_operator')
    assert not hasattr(module, '__path__')
    assert pickle.loads(pickle.dumps(module.nms)) is module.nms


@pytest.mark.usefixtures('uninstalled')
def test_environment_is_reported():
    from mmcv.utils.ext_loader import check_ops_exist
    from mmdet.utils import collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    mmcv_ops.install()
    assert mmcv_full_available()
    if sys.version_info < (3, 14):  # uses pkgutil.find_loader
        assert check_ops_exist()
    assert 'MMDetection' in collect_env()
    assert mmcv.ops.get_compiler_version() == 'none (masa_vit.detection.mmcv_ops)'
    assert mmcv.ops.get_compiling_cuda_version() == 'not available'


def test_compiled_operators_are_not_shadowed(uninstalled: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / '_ext.py').write_text('compiled = True\n')
    uninstalled.setattr(mmcv, '__path__', [str(tmp_path)])
    assert not mmcv_ops.install()
    assert not mmcv_ops.install()
    assert sys.modules['mmcv._ext'].compiled
    assert not any(isinstance(finder, mmcv_ops._Finder) for finder in sys.meta_path)


def test_broken_compiled_operators_are_reported(uninstalled: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / '_ext.py').write_text('raise ImportError("undefined symbol: _ZN3c10")\n')
    uninstalled.setattr(mmcv, '__path__', [str(tmp_path)])
    with pytest.raises(ImportError, match=r'undefined symbol: _ZN3c10\n.*another version of torch'):
        mmcv_ops.install()
    assert 'mmcv._ext' not in sys.modules


def test_use_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_boxes: Callable[..., Tensor]
):
    monkeypatch.setattr(MMLogger, '_instance_dict', MMLogger._instance_dict.copy())
    log = tmp_path / 'run.log'
    MMLogger.get_instance('run', log_file=str(log))
    common._announce.cache_clear()
    for _ in range(2):
        mmcv.ops.nms(random_boxes(3), torch.rand(3), 0.5)
        mmcv.ops.RoIPool(2)(torch.randn(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))
    lines = log.read_text().splitlines()
    assert len(lines) == 1
    assert 'INFO' in lines[0]
    assert 'masa_vit.detection uses torchvision' in lines[0]


def test_modules_of_mmdet_may_be_imported_before(uninstalled: pytest.MonkeyPatch):
    """mmdet's own tools import it before they read the config that imports masa_vit.detection."""
    file = importlib.util.find_spec('mmdet.structures.mask.structures').origin
    spec = importlib.util.spec_from_file_location('mmdet.imported_before', file)
    module = importlib.util.module_from_spec(spec)
    with uninstalled.context() as without:
        without.setitem(sys.modules, 'mmcv.ops.roi_align', None)
        spec.loader.exec_module(module)
    masks = module.BitmapMasks(np.ones((1, 8, 8), np.uint8), 8, 8)
    crop = (np.array([[0.0, 0, 8, 8]], np.float32), (4, 4), np.array([0]))
    with pytest.raises(RuntimeError, match='requires mmcv to be compiled'):
        masks.crop_and_resize(*crop)
    uninstalled.setitem(sys.modules, spec.name, module)
    before = dict(vars(module))
    assert mmcv_ops.install()
    assert masks.crop_and_resize(*crop).masks.all()
    assert vars(module) == before | {'roi_align': mmcv.ops.roi_align}


def test_only_placeholders_are_replaced(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType('mmdet.imported_before')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    bare = '*args, **kwargs'
    source = (
        f'def _sigmoid_focal_loss({bare}): raise RuntimeError\n'
        f'class DeformConv2d:\n    def __init__(self, {bare}): raise RuntimeError\n'
        'def nms(boxes): return boxes\n'
        'class RoIPool:\n    def __init__(self, size): self.size = size\n'
        f'def unknown({bare}): raise RuntimeError\n'
    )
    exec(source, vars(module))
    before = dict(vars(module))
    mmcv_ops._replace_placeholders()
    assert module._sigmoid_focal_loss is mmcv.ops.sigmoid_focal_loss
    assert module.DeformConv2d is mmcv.ops.DeformConv2d
    for name in ('nms', 'RoIPool', 'unknown'):
        assert getattr(module, name) is before[name]
