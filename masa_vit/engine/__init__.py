"""Training and testing with mmengine's Runner, for any task.

Importing registers the hooks and the optimizer wrappers and constructor.
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        'masa_vit.engine needs packages that are not installed '
        f'({error.name}): pip install "masa-vit[train]"'
    ) from error

from masa_vit.engine import hooks, optim
from masa_vit.engine.config import load_config
from masa_vit.engine.test import test
from masa_vit.engine.train import train

__all__ = ['hooks', 'load_config', 'optim', 'test', 'train']
