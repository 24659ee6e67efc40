"""Image transforms for dataset pipelines, from three libraries, chosen in the config.

A pipeline is a list of these; each maps ``results['inputs']``. Images start as (H, W, 3) uint8
arrays and end as (3, H, W) tensors, uint8 to be normalised on the device or float as they are.

All randomness comes from the process' own generators (Python, NumPy, PyTorch), so seeding a run,
a data-loading worker, or resuming a run needs to know nothing about the libraries used.
"""

from __future__ import annotations

import difflib
import os
import random
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from torch import Tensor

__all__ = ['Albumentations', 'TimmTransform', 'TorchvisionTransform', 'to_chw']


def to_chw(image: np.ndarray | Tensor) -> Tensor:
    """(H, W, C) array -> (C, H, W) tensor; a tensor is taken to be (C, H, W) already."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _to_hwc(image: np.ndarray | Tensor) -> np.ndarray:
    """(C, H, W) tensor -> (H, W, C) array; an array is taken to be (H, W, C) already."""
    return image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image


def _build(cfg: Any, library: ModuleType) -> Any:
    """Turn ``dict(type=NAME, **kwargs)`` into ``library.NAME(**kwargs)``, nested ones too."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(_build(item, library) for item in cfg)
    if not isinstance(cfg, dict) or 'type' not in cfg:
        return cfg
    kwargs = {key: _build(value, library) for key, value in cfg.items()}
    name = kwargs.pop('type')
    factory = getattr(library, str(name), None)
    if not isinstance(factory, type):
        names = [n for n in dir(library) if isinstance(getattr(library, n), type)]
        close = difflib.get_close_matches(str(name), names) or ['nothing close']
        raise ValueError(
            f'{library.__name__} has no transform {name!r}; closest names: {", ".join(close)}'
        )
    try:
        with warnings.catch_warnings():
            # albumentations only warns of an argument that it does not know
            warnings.filterwarnings('error', message='Argument')
            return factory(**kwargs)
    except (TypeError, ValueError, UserWarning) as error:
        raise ValueError(f'{library.__name__}.{name} with {kwargs}: {error}') from error


def _check_list(transforms: Any, owner: str) -> None:
    if isinstance(transforms, dict) or not isinstance(transforms, Sequence):
        raise TypeError(
            f'{owner}(transforms=...) expects a list of dict(type=NAME, ...), '
            f'got {type(transforms).__name__}'
        )
    for item in transforms:
        if not isinstance(item, dict) or 'type' not in item:
            raise TypeError(f'{owner}(transforms=...) expects dict(type=NAME, ...), got {item!r}')


@TRANSFORMS.register_module()
class Albumentations:
    """Apply a list of albumentations transforms, by their albumentations names.

    Args:
        transforms: for example ``[dict(type='HorizontalFlip', p=0.5)]``; containers nest:
            ``dict(type='OneOf', transforms=[...])``.
    """

    def __init__(self, transforms: Sequence[dict]):
        os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')  # no network at import
        import albumentations

        _check_list(transforms, 'Albumentations')
        self.compose = albumentations.Compose(_build(list(transforms), albumentations))
        self._pid = -1

    def _share_generators(self) -> None:
        """Let albumentations draw from this process' own NumPy and Python generators.

        Its separate generators ignore ``np.random.seed`` and worker seeds, and every worker would
        have an equal copy.
        """
        self.compose.set_random_state(
            # the singletons behind `np.random.rand` and `random.random`
            np.random.Generator(np.random.mtrand.get_bit_generator()),
            random._inst,
        )
        self._pid = os.getpid()

    def __call__(self, results: dict) -> dict:
        """Transform ``results['inputs']`` in place."""
        if self._pid != os.getpid():  # first call, or a new worker
            self._share_generators()
        results['inputs'] = self.compose(image=_to_hwc(results['inputs']))['image']
        return results


@TRANSFORMS.register_module()
class TorchvisionTransform:
    """Apply a list of ``torchvision.transforms.v2`` transforms, by their names there.

    Args:
        transforms: for example ``[dict(type='RandomCrop', size=32, padding=4)]``;
            ``interpolation`` is given as a string such as ``'bicubic'``.
    """

    def __init__(self, transforms: Sequence[dict]):
        from torchvision.transforms import InterpolationMode, v2

        _check_list(transforms, 'TorchvisionTransform')
        cfgs = [dict(cfg) for cfg in transforms]
        for cfg in cfgs:
            if isinstance(cfg.get('interpolation'), str):
                cfg['interpolation'] = InterpolationMode(cfg['interpolation'])
        self.transforms = _build(cfgs, v2)

    def __call__(self, results: dict) -> dict:
        """Transform ``results['inputs']`` in place."""
        image = to_chw(results['inputs'])
        for transform in self.transforms:
            image = transform(image)
        results['inputs'] = image
        return results


def _posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    """timm's, also for 0 bits, which newer versions of Pillow refuse: the image is black then."""
    from timm.data.auto_augment import posterize

    return posterize(image, bits, **kwargs) if bits >= 1 else image.point(lambda value: 0)


@TRANSFORMS.register_module()
class TimmTransform:
    """timm's training or evaluation transform; gives normalised float images.

    Args:
        input_size: side, or (channels, height, width).
        is_training: random crop, flip, ``auto_augment``, ``re_prob``...; else resize and
            centre crop by ``crop_pct``.
        **kwargs: anything else that ``timm.data.create_transform`` takes.
    """

    def __init__(self, input_size: int | Sequence[int], is_training: bool = False, **kwargs: Any):
        from timm.data import create_transform

        size = input_size if isinstance(input_size, int) else tuple(input_size)
        try:
            self.transform = create_transform(size, is_training=is_training, **kwargs)
        except TypeError as error:
            raise ValueError(f'TimmTransform: {error}') from error
        for step in getattr(self.transform, 'transforms', []):
            for op in getattr(step, 'ops', []):  # of RandAugment
                if op.name.startswith('Posterize'):
                    op.aug_fn = _posterize

    def __call__(self, results: dict) -> dict:
        """Transform ``results['inputs']`` in place."""
        results['inputs'] = self.transform(Image.fromarray(_to_hwc(results['inputs'])))
        return results
