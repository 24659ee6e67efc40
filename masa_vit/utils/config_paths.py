"""Paths of the shipped configs; importing this enables `_base_ = 'masa_vit::cls/x.py'` in mmengine."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from mmengine.config import Config

PACKAGE = 'masa_vit'


def config_root() -> Path:
    """Return the folder of the shipped configs: in a wheel, or next to the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / '.mim' / 'configs', package.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f'the configs of {PACKAGE} were found neither in {str(package / ".mim")!r} nor beside the '
        'package; install the package again.'
    )


def resolve_config(path: str | Path) -> Path:
    """The file that a path or `masa_vit::cls/x.py` names.

    Raises:
        FileNotFoundError: If the file does not exist; the message names similar ones.
    """
    text = str(path)
    package, separator, name = text.partition('::')
    file = config_root() / name if separator and package == PACKAGE else Path(text)
    if file.is_file():
        return file
    known = {p.name: p for p in sorted(config_root().rglob('*.py')) if '_base_' not in p.parts}
    close = difflib.get_close_matches(file.name, known, n=3, cutoff=0.5)
    hint = ''.join(
        f'\n  {PACKAGE}::{known[c].relative_to(config_root()).as_posix()}' for c in close
    )
    raise FileNotFoundError(
        f'config {text!r} does not exist; expected a file or the name of a shipped config such as '
        f'{PACKAGE}::cls/<name>.py.' + (f' Similar shipped configs:{hint}' if hint else '')
    )


_mmengine_cfg_path = Config._get_cfg_path


def _get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
    if cfg_path.startswith(f'{PACKAGE}::'):
        # no scope: the package registers its classes in mmengine's own registries
        return str(resolve_config(cfg_path)), None
    if cfg_path.startswith('mmdet::') and importlib.util.find_spec('mmdet') is None:
        raise ImportError(f'{cfg_path} needs MMDetection: pip install "masa-vit[det]"')
    return _mmengine_cfg_path(cfg_path, filename)


# mmengine resolves `_base_ = 'package::...'` only for packages with a model-index.yml that OpenMIM
# installed; the function above resolves ours, also in a checkout.
Config._get_cfg_path = staticmethod(_get_cfg_path)
