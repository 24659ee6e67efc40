"""What is said when mmdet and its companions are missing, broken or there twice."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from masa_vit.detection import packages

FORKS = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}
ORIGINALS = {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Set which distributions pip knows, and which modules can be found."""

    def set_up(
        installed: dict[str, str], modules: tuple[str, ...] = ('mmengine', 'mmcv', 'mmdet')
    ) -> None:
        def version(name: str) -> str:
            if name not in installed:
                raise PackageNotFoundError(name)
            return installed[name]

        fake = SimpleNamespace(version=version, PackageNotFoundError=PackageNotFoundError)
        monkeypatch.setattr(packages, 'metadata', fake)
        monkeypatch.setattr(packages, '_found', lambda name: name in modules)

    return set_up


def test_what_the_extra_installs_is_accepted(pretend):
    pretend(FORKS)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        packages.check()


def test_missing_packages_are_named_with_the_extra(pretend):
    pretend({'onedl-mmengine': '0.10.12'}, modules=('mmengine',))
    with pytest.raises(ImportError, match=r'\(mmcv, mmdet\): pip install "masa-vit\[det\]"'):
        packages.check()


def test_originals_beside_the_forks_are_to_be_uninstalled(pretend):
    pretend(FORKS | ORIGINALS | {'mmcv': '2.1.0'})
    with pytest.raises(ImportError) as error:
        packages.check()
    assert str(error.value).splitlines()[1:] == [
        '    pip uninstall -y mmengine mmcv mmcv-lite mmdet',
        '    pip install --force-reinstall --no-deps onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 '
        'onedl-mmdetection==3.5.1',
    ]


def test_one_original_beside_its_fork(pretend):
    pretend(FORKS | {'mmdet': '3.3.0'})
    with pytest.raises(ImportError, match=r'^mmdet and onedl-mmdetection are both') as error:
        packages.check()
    assert 'mmcv' not in str(error.value)


def test_forks_that_lost_their_files_are_to_be_reinstalled(pretend):
    pretend(FORKS, modules=('mmcv', 'mmengine'))
    cure = 'pip install --force-reinstall --no-deps onedl-mmdetection==3.5.1'
    with pytest.raises(ImportError, match=f'files of onedl-mmdetection are missing:\n    {cure}$'):
        packages.check()


def test_originals_that_work_only_warn(pretend):
    pretend(ORIGINALS)
    with pytest.warns(UserWarning, match='mmengine, mmcv-lite, mmdet found: .*torch 2.6'):
        packages.check()


def test_originals_that_fail_are_refused(pretend, monkeypatch: pytest.MonkeyPatch):
    def import_module(name: str) -> None:
        assert name != 'mmdet', 'MMCV==2.3.6 is used but incompatible'

    pretend({'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'mmdet': '3.3.0'})
    monkeypatch.setattr(importlib, 'import_module', import_module)
    with pytest.raises(ImportError) as error:
        packages.check()
    assert 'MMCV==2.3.6 is used but incompatible' in str(error.value)
    assert 'pip uninstall -y mmdet\n    pip install "masa-vit[det]"' in str(error.value)


@pytest.mark.parametrize('installed', ['opencv-python-headless', 'opencv-python'])
def test_opencv_that_needs_a_desktop(
    installed: str, pretend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    text = 'libGL.so.1: cannot open shared object file: No such file or directory'
    (tmp_path / 'cv2.py').write_text(f'raise ImportError({text!r})\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cv2')
    pretend(FORKS | {installed: '4.12.0.88'})
    with pytest.raises(ImportError) as error:
        packages.check()
    assert text in str(error.value)
    assert str(error.value).endswith(
        '    pip install --force-reinstall --no-deps opencv-python-headless==4.12.0.88'
    )


def test_a_folder_without_a_module_is_not_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / 'left_over' / 'models').mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec('left_over') is not None
    assert not packages._found('left_over')
    assert not packages._found('never_installed')
    assert packages._found('mmdet')
