"""Make mmengine read checkpoints by `masa_vit.utils.weight_files`: as data, checked first.

Importing registers the loaders for mmengine's `CheckpointLoader`, through which its runner, `init_cfg`
and mmdet's tools read files. mmengine's own loaders unpickle fully where a safe load fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.runner import CheckpointLoader

from masa_vit.utils.weight_files import read_weight_file


def _load_local(filename: str, map_location: Any = None) -> Any:
    return read_weight_file(filename)


def _load_url(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """Download into torch's cache, as `torch.hub.load_state_dict_from_url` does."""
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlparse(filename).path).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(path))
    return read_weight_file(path)


def _refuse(filename: str, map_location: Any = None) -> Any:
    scheme = filename.partition('://')[0]
    raise ValueError(
        f'checkpoint {filename!r}: {scheme}:// is not supported; give a path or an http(s) URL'
    )


for _prefix in CheckpointLoader._schemes:
    CheckpointLoader.register_scheme(_prefix, _refuse, force=True)
CheckpointLoader.register_scheme('', _load_local, force=True)
CheckpointLoader.register_scheme(('http://', 'https://'), _load_url, force=True)
