"""Image classification datasets: ``dataset[i]`` is ``dict(inputs=(3, H, W) tensor, targets=int)``.

Every dataset has ``metainfo['classes']``, the class names in the order of the targets, which
travels with a checkpoint.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from masa_vit.training.transforms import to_chw
from masa_vit.utils.images import (
    SUFFIXES,
    UnreadableImageError,
    class_folders,
    list_folder,
    read_image,
)

__all__ = [
    'IGNORE_INDEX',
    'Digits',
    'ImageDataset',
    'ImageFolder',
    'ImageNet',
    'TorchvisionDataset',
]

IGNORE_INDEX = -100
"""Target of an image that could not be read and was skipped; also cross entropy's own default."""

Transforms = Sequence[dict | Callable[[dict], dict]]


class ImageDataset(Dataset):
    """Base class: ``load`` gives an image, ``pipeline`` makes the tensor.

    Args:
        classes: names, in the order of the targets.
        targets: class index of every image.
        pipeline: transforms, as configs (``dict(type=...)``) or callables.
    """

    def __init__(self, classes: Sequence[str], targets: Sequence[int], pipeline: Transforms = ()):
        self.metainfo = {'classes': [str(name) for name in classes]}
        self.targets = [int(target) for target in targets]
        self.pipeline = Compose(list(pipeline))

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int) -> np.ndarray:
        """The image as (H, W, 3) uint8."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        return self._sample(self.load(index), self.targets[index])

    def _sample(self, image: np.ndarray, target: int) -> dict:
        results = self.pipeline({'inputs': image, 'targets': target})
        return {'inputs': to_chw(results['inputs']), 'targets': results['targets']}


@DATASETS.register_module()
class Digits(ImageDataset):
    """1,797 real handwritten digits of 8x8 pixels that come with scikit-learn.

    The split is fixed and stratified: 1,437 images to train on, 360 held out.

    Args:
        split: ``'train'`` or ``'val'``.
        pipeline: see :class:`ImageDataset`; a resize belongs in it.
    """

    def __init__(self, split: str = 'train', pipeline: Transforms = ()):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        _check_split(split)
        images, targets = load_digits(return_X_y=True)
        train, val = train_test_split(
            np.arange(len(targets)), test_size=360, stratify=targets, random_state=0
        )
        keep = np.sort(train if split == 'train' else val)
        grey = (images[keep].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
        self.images = np.repeat(grey[..., None], 3, axis=-1)  # (n, 8, 8, 3)
        super().__init__([str(digit) for digit in range(10)], targets[keep], pipeline)

    def load(self, index: int) -> np.ndarray:
        """The image as (8, 8, 3) uint8."""
        return self.images[index]


@DATASETS.register_module()
class TorchvisionDataset(ImageDataset):
    """CIFAR10, CIFAR100 or FashionMNIST in torchvision's own files.

    Args:
        name: the class in ``torchvision.datasets``.
        data_root: folder of the files.
        split: ``'train'``, or ``'val'`` for their test set.
        pipeline: see :class:`ImageDataset`.
        download: fetch the files if they are not in ``data_root``. Of several processes rank 0
            does, and the others wait for it; several machines need a folder that they share.
    """

    NAMES = ('CIFAR10', 'CIFAR100', 'FashionMNIST')

    def __init__(
        self,
        name: str,
        data_root: str,
        split: str = 'train',
        pipeline: Transforms = (),
        download: bool = False,
    ):
        import torchvision.datasets

        _check_split(split)
        if name not in self.NAMES:
            raise ValueError(
                f'unknown torchvision dataset {name!r}; known: {", ".join(self.NAMES)}'
            )
        build = partial(
            getattr(torchvision.datasets, name),
            data_root,
            train=split == 'train',
            download=download,
        )
        try:
            self.data = _rank_0_first(build) if download else build()
        except RuntimeError as error:
            if download:
                raise
            raise FileNotFoundError(
                f'no {name} in {Path(data_root).absolute()} ({error}).\n'
                'Fetch it with download=True in the config, or on the command line: --cfg-options '
                'train_dataloader.dataset.download=True val_dataloader.dataset.download=True'
            ) from error
        super().__init__(self.data.classes, self.data.targets, pipeline)

    def load(self, index: int) -> np.ndarray:
        """The image as (H, W, 3) uint8; grey ones are repeated."""
        return np.array(self.data[index][0].convert('RGB'))


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """Images in one folder a class: ``data_root/split/class/**/image.png``.

    Which files are images, and which folders no classes: see `masa_vit.utils.images.list_folder`.

    Args:
        data_root: folder of the dataset.
        split: its subfolder, such as ``'train'`` or ``'val'``; ``''`` for data_root itself.
        pipeline: see :class:`ImageDataset`.
        classes: class names in the order of the targets; default: the folders' names, sorted.
        on_error: ``'raise'`` on an image that cannot be read, or ``'skip'`` it: its path is
            logged, its place is taken by a sample with target ``IGNORE_INDEX``, which neither
            training nor the accuracy counts, and ``SkippedImagesHook`` logs their number.
            A path is logged once by every copy of the dataset that meets it: every worker has
            one, and workers that are not persistent have a new one every epoch.
        cache: keep decoded images in memory, those of a worker in that worker. For small images
            (CIFAR: 150 MB a worker), whose decoding costs more than all the rest of loading.
        images_per_class: number of images of each class, the first in the order of their paths.
        hint: where to get the data; part of the message when the folder is missing.
    """

    how_to_get = (
        'Expected one subfolder a class with images in it, as in data_root/train/cat/1.png. '
        'Set data_root in the config, or: --cfg-options '
        'train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR'
    )

    def __init__(
        self,
        data_root: str,
        split: str = '',
        pipeline: Transforms = (),
        classes: Sequence[str] | None = None,
        on_error: str = 'raise',
        cache: bool = False,
        images_per_class: int | None = None,
        hint: str = '',
    ):
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"on_error expects 'raise' or 'skip', got {on_error!r}")
        if images_per_class is not None and images_per_class < 1:
            raise ValueError(f'images_per_class expects 1 or more, got {images_per_class!r}')
        self.on_error = on_error
        self.images_per_class = images_per_class
        self._advice = f'{self.how_to_get}\n{hint}'.rstrip()
        self._cache: dict[int, np.ndarray] | None = {} if cache else None
        self.root = Path(data_root).expanduser() / split
        names = self._find_classes(classes)
        self.paths, targets = self._find_images(names)
        self._reported: set[str] = set()
        super().__init__(names, targets, pipeline)

    def _find_classes(self, classes: Sequence[str] | None) -> list[str]:
        if not self.root.is_dir():
            raise FileNotFoundError(f'no data folder {self.root.absolute()}. {self._advice}')
        found = [path.name for path in class_folders(self.root)]
        if not found:
            raise FileNotFoundError(f'no class folder in {self.root.absolute()}. {self._advice}')
        if classes is None:
            return found
        if unlisted := sorted(set(found) - set(classes)):
            raise ValueError(
                f'{self.root.absolute()} has folders that `classes` does not list: '
                f'{", ".join(unlisted[:10])}'
            )
        return list(classes)

    def _find_images(self, names: list[str]) -> tuple[list[str], list[int]]:
        paths: list[str] = []
        targets: list[int] = []
        others: list[Path] = []
        for target, name in enumerate(names):
            images, foreign = list_folder(self.root / name)
            images = images[: self.images_per_class]
            paths += map(str, images)
            targets += [target] * len(images)
            others += foreign
        if others:
            print_log(
                f'{len(others)} files in the class folders of {self.root.absolute()} are not images '
                f'({", ".join(SUFFIXES)}) and left out: {", ".join(path.name for path in others[:5])}'
                f'{", ..." * (len(others) > 5)}',
                'current',
                logging.WARNING,
            )
        count = Counter(targets)
        if empty := [
            str(self.root.absolute() / name) for i, name in enumerate(names) if not count[i]
        ]:
            raise FileNotFoundError(
                f'{len(empty)} of {len(names)} class folders hold no image '
                f'({", ".join(SUFFIXES)}): {", ".join(empty[:10])}\n'
                'Put images there or remove the folder, in every split alike.'
            )
        return paths, targets

    def load(self, index: int) -> np.ndarray:
        """The image as (H, W, 3) uint8; UnreadableImageError names a file that is none."""
        if self._cache is None:
            return read_image(self.paths[index])
        if index not in self._cache:
            self._cache[index] = read_image(self.paths[index])
        return self._cache[index].copy()  # a transform may work in place

    def __getitem__(self, index: int) -> dict:
        try:
            image = self.load(index)
        except UnreadableImageError as error:
            if self.on_error == 'raise':
                raise UnreadableImageError(
                    f"{error}\nFix or remove the file, or set on_error='skip' in the dataset's "
                    'config to leave such images out.'
                ) from error
            return self._sample(self._substitute(index, str(error)), IGNORE_INDEX)
        return self._sample(image, self.targets[index])

    def _substitute(self, index: int, message: str) -> np.ndarray:
        """Any readable image: the pipeline has to make a tensor of the right shape."""
        if message not in self._reported:
            self._reported.add(message)
            # the level that ranks other than 0 show, too
            print_log(f'skipped: {message}', 'current', logging.ERROR)
        for offset in range(1, min(len(self), 1000)):
            try:
                return self.load((index + offset) % len(self))
            except UnreadableImageError:
                continue
        raise UnreadableImageError(f'{message}; nor could the next images of {self.root} be read')


@DATASETS.register_module()
class ImageNet(ImageFolder):
    """ImageNet-1k, unpacked to ``data_root/{train,val}/nXXXXXXXX/*.JPEG``."""

    how_to_get = (
        'ImageNet-1k needs an account at https://image-net.org; unpack it to '
        'data_root/{train,val}/nXXXXXXXX/*.JPEG (docs/data.md has the commands) and set data_root: '
        '--cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR'
    )

    def _find_classes(self, classes: Sequence[str] | None) -> list[str]:
        names = super()._find_classes(classes)
        if len(names) != 1000:
            raise ValueError(
                f'{self.root.absolute()} has {len(names)} class folders, ImageNet-1k has 1000; '
                "other data is read by type='ImageFolder'"
            )
        return names


def _check_split(split: str) -> None:
    if split not in ('train', 'val'):
        raise ValueError(f"split expects 'train' or 'val', got {split!r}")


def _rank_0_first(build: Callable[[], Any]) -> Any:
    """Call ``build``, which may download, on rank 0, and then on the other ranks.

    An error on rank 0 is raised on every rank, so that none waits for it.
    """
    if not is_main_process():
        failure: list[str | None] = [None]
        broadcast_object_list(failure)
        if failure[0] is not None:
            raise RuntimeError(f'rank 0 failed: {failure[0]}')
        return build()
    try:
        built = build()
    except Exception as error:
        broadcast_object_list([f'{type(error).__name__}: {error}'])
        raise
    broadcast_object_list([None])
    return built
