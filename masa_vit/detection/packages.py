"""Check the installation of ``masa-vit[det]``."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterable
from importlib import metadata

# module: (distribution that masa_vit uses, distributions that install the same module)
_MODULES = {
    'mmengine': ('onedl-mmengine', ('mmengine', 'mmengine-lite')),
    'mmcv': ('onedl-mmcv', ('mmcv', 'mmcv-lite', 'mmcv-full')),
    'mmdet': ('onedl-mmdetection', ('mmdet',)),
}


def check() -> None:
    """Check that mmengine, mmcv, mmdet and cv2 can work.

    Raises:
        ImportError: names the missing, broken or doubled packages, and the commands to fix it.
    """
    others = {name: fork for fork, names in _MODULES.values() for name in names if _version(name)}
    both = {name: fork for name, fork in others.items() if _version(fork)}
    if both:
        raise ImportError(
            f'{_list(both)} and {_list(both.values())} are both installed and overwrite each '
            'other. Remove the first and restore the second:\n'
            f'    pip uninstall -y {" ".join(both)}\n'
            f'    {_reinstall(both.values())}'
        )
    if others:
        _check_others(others)
    missing = {module: fork for module, (fork, _) in _MODULES.items() if not _found(module)}
    damaged = [fork for fork in missing.values() if _version(fork)]
    if damaged:
        # pip lists them as installed, but uninstalling their namesakes removed their files
        raise ImportError(f'files of {_list(damaged)} are missing:\n    {_reinstall(damaged)}')
    if missing:
        raise ImportError(
            'masa_vit.detection needs packages that are not installed '
            f'({_list(missing)}): pip install "masa-vit[det]"'
        )
    _check_cv2()


def _check_others(others: dict[str, str]) -> None:
    """Refuse the packages that onedl's were forked from where they fail, else warn."""
    try:
        for module in _MODULES:
            importlib.import_module(module)
    # mmdet asserts the version of mmcv
    except (ImportError, AssertionError) as error:
        raise ImportError(
            f'{_list(others)} cannot be used here ({type(error).__name__}: {error}). masa_vit '
            f'works with their maintained forks {_list(others.values())}:\n'
            f'    pip uninstall -y {" ".join(others)}\n'
            '    pip install "masa-vit[det]"'
        ) from error
    warnings.warn(
        f'{_list(others)} found: masa_vit is tested with their maintained forks '
        f'{_list(others.values())} only. On torch 2.6 and later the originals fail to load '
        'their own checkpoints; if that happens: '
        f'pip uninstall -y {" ".join(others)}; pip install "masa-vit[det]"',
        stacklevel=3,
    )


def _check_cv2() -> None:
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        # albumentations brings opencv-python-headless and mmcv opencv-python; both install cv2,
        # pip opencv-python last, and that one needs libGL.so.1 and other libraries of a desktop
        versions = map(_version, ('opencv-python-headless', 'opencv-python'))
        version = next((f'=={version}' for version in versions if version), '')
        raise ImportError(
            f'OpenCV cannot be imported: {error}\nWhere libraries of a desktop are missing, '
            'put opencv-python-headless, which needs none, in the place of opencv-python:\n'
            f'    pip install --force-reinstall --no-deps opencv-python-headless{version}'
        ) from error


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _found(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    # a folder without an __init__.py, left by an uninstalled package, has no origin
    return spec is not None and spec.origin is not None


def _list(names: Iterable[str]) -> str:
    return ', '.join(dict.fromkeys(names))


def _reinstall(forks: Iterable[str]) -> str:
    pinned = (f'{fork}=={_version(fork)}' for fork in dict.fromkeys(forks))
    return f'pip install --force-reinstall --no-deps {" ".join(pinned)}'
