from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.dataset.utils import worker_init_fn
from mmengine.registry import DATASETS
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from masa_vit.training.image_datasets import IGNORE_INDEX
from masa_vit.utils.images import UnreadableImageError


def build(root: Path, split: str = 'train', **kwargs):
    return DATASETS.build(dict(type='ImageFolder', data_root=str(root), split=split, **kwargs))


def test_digits() -> None:
    train, val = (DATASETS.build(dict(type='Digits', split=split)) for split in ('train', 'val'))
    assert (len(train), len(val)) == (1437, 360)
    sample = train[0]
    assert sample['inputs'].shape == (3, 8, 8)
    assert sample['inputs'].dtype == torch.uint8
    assert train.metainfo['classes'] == list('0123456789')
    assert train.images.max() == 255
    # stratified: every digit makes up the same part of both splits, up to rounding
    shares = [np.bincount(data.targets) / len(data) for data in (train, val)]
    assert np.abs(shares[0] - shares[1]).max() < 0.003
    again = DATASETS.build(dict(type='Digits', split='val'))
    assert np.array_equal(val.images, again.images)
    with pytest.raises(ValueError, match="split expects 'train' or 'val', got 'test'"):
        DATASETS.build(dict(type='Digits', split='test'))


def test_image_folder(image_root: Path) -> None:
    data = build(image_root)
    assert len(data) == 24
    assert data.metainfo == {'classes': ['cat', 'dog', 'emu']}
    for index in (0, 9, 23):
        sample = data[index]
        image = np.array(Image.open(data.paths[index]))
        assert np.array_equal(sample['inputs'].numpy(), image.transpose(2, 0, 1))
        assert data.metainfo['classes'][sample['targets']] in data.paths[index]
    assert set(np.bincount(data.targets)) == {8}


def test_a_part_of_every_class(image_root: Path) -> None:
    data = build(image_root, images_per_class=3)
    assert np.bincount(data.targets).tolist() == [3, 3, 3]
    assert data.paths[:3] == build(image_root).paths[:3]
    with pytest.raises(ValueError, match='images_per_class expects 1 or more, got 0'):
        build(image_root, images_per_class=0)


def test_cache_reads_once_and_keeps_its_images(image_root: Path) -> None:
    data = build(image_root, cache=True)
    first = data.load(0)
    expected = first.copy()
    Path(data.paths[0]).unlink()
    first[:] = 0
    assert np.array_equal(data.load(0), expected)


def test_hidden_folders_are_no_classes(image_root: Path) -> None:
    (image_root / 'train' / '.ipynb_checkpoints').mkdir()
    assert build(image_root).metainfo['classes'] == ['cat', 'dog', 'emu']


def test_grey_palette_and_transparent_images_become_rgb(image_root: Path) -> None:
    image = Image.open(build(image_root).paths[0])
    for number, mode in enumerate(('L', 'P', 'RGBA', 'CMYK')):
        image.convert(mode).save(image_root / 'train' / 'cat' / f'mode{number}.tif')
    data = build(image_root)
    assert len(data) == 28
    assert {data[index]['inputs'].shape for index in range(len(data))} == {(3, 20, 24)}


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nowhere/train.*data_root') as error:
        build(tmp_path / 'nowhere')
    assert 'train_dataloader.dataset.data_root=DIR' in str(error.value)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'no class folder(.|\n)*=DIR\nask Ann'):
        build(tmp_path / 'empty', split='', hint='ask Ann')


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_configs_say_how_to_download(
    name: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = Path(__file__).parents[2] / 'configs'
    cfg = Config.fromfile(configs / '_base_' / 'datasets' / f'{name}.py')
    with pytest.raises(FileNotFoundError, match=f'data/{name}/{split}') as error:
        DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    named = re.findall(r'masa_vit::(\S+\.py)', str(error.value))
    assert len(named) == 1
    assert (configs / named[0]).is_file()


def test_spawned_worker_gives_the_same_batches(image_root: Path) -> None:
    """Nothing that a worker needs is left behind where processes are not forked."""
    shift = [dict(type='RandomCrop', height=16, width=16), dict(type='HorizontalFlip')]
    colour = [dict(type='ColorJitter', brightness=0.5), dict(type='RandomHorizontalFlip')]
    data = build(
        image_root,
        pipeline=[
            dict(type='Albumentations', transforms=shift),
            dict(type='TorchvisionTransform', transforms=colour),
            dict(type='TimmTransform', input_size=16, is_training=True, re_prob=0.5),
        ],
    )
    seed = partial(worker_init_fn, num_workers=1, rank=0, seed=3)

    def batches(**kwargs) -> list[dict]:
        generator = torch.Generator()  # starting must not draw from the global one
        return list(DataLoader(data, 6, collate_fn=default_collate, generator=generator, **kwargs))

    seed(0)
    expected = batches()
    found = batches(num_workers=1, multiprocessing_context='spawn', worker_init_fn=seed)
    for batch, other in zip(expected, found, strict=True):
        assert torch.equal(batch['inputs'], other['inputs'])
        assert torch.equal(batch['targets'], other['targets'])


def test_empty_class_folder_is_named(image_root: Path) -> None:
    (image_root / 'train' / 'yak' / 'deep').mkdir(parents=True)
    (image_root / 'train' / 'yak' / 'notes.txt').write_text('no image')
    with pytest.raises(FileNotFoundError, match=r'1 of 4 class folders hold no image.*train/yak'):
        build(image_root)


def test_given_classes(image_root: Path) -> None:
    data = build(image_root, classes=['emu', 'cat', 'dog'])
    assert data.metainfo['classes'] == ['emu', 'cat', 'dog']
    assert '/emu/' in data.paths[data.targets.index(0)]
    with pytest.raises(ValueError, match='does not list: emu'):
        build(image_root, classes=['cat', 'dog'])
    with pytest.raises(FileNotFoundError, match='train/yak'):
        build(image_root, classes=['cat', 'dog', 'emu', 'yak'])


@pytest.mark.parametrize('damage', ['truncated', 'text', 'empty', 'gone'])
@pytest.mark.parametrize('in_worker', [False, True])
def test_unreadable_image_is_named(image_root: Path, damage: str, in_worker: bool) -> None:
    data = build(image_root)
    _damage(Path(data.paths[5]), damage)

    def load() -> None:
        try:
            data[5]
        except UnreadableImageError:
            if not in_worker:
                raise
            # how a DataLoader brings a worker's error to the main process
            ExceptionWrapper(where='in DataLoader worker process 0').reraise()

    with pytest.raises(UnreadableImageError) as error:
        load()
    message = str(error.value)
    assert message.startswith(f'cannot read the image {data.paths[5]}')
    assert "on_error='skip'" in message
    assert 'Traceback' not in message


@pytest.mark.parametrize('damage', ['truncated', 'text'])
def test_unreadable_image_is_skipped(
    image_root: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(
        'masa_vit.training.image_datasets.print_log', lambda text, *_: log.append(text)
    )
    data = build(image_root, on_error='skip')
    for index in (5, 6):
        _damage(Path(data.paths[index]), damage)
    batch = default_collate([data[index] for index in range(len(data))])
    assert batch['inputs'].shape == (24, 3, 20, 24)
    skipped = (batch['targets'] == IGNORE_INDEX).nonzero().flatten().tolist()
    assert skipped == [5, 6]
    data[5]  # once more: a path is reported once
    assert len(log) == 2
    assert data.paths[5] in log[0]
    assert data.paths[6] in log[1]


def test_nothing_readable(image_root: Path) -> None:
    data = build(image_root, on_error='skip')
    for path in data.paths:
        _damage(Path(path), 'text')
    with pytest.raises(UnreadableImageError, match='nor could the next images'):
        data[0]
    with pytest.raises(ValueError, match="on_error expects 'raise' or 'skip', got 'ignore'"):
        build(image_root, on_error='ignore')


def _damage(path: Path, how: str) -> None:
    if how == 'gone':
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({'truncated': content[:200], 'text': b'hello', 'empty': b''}[how])


def test_imagenet_has_1000_classes(image_root: Path) -> None:
    with pytest.raises(ValueError, match=r"3 class folders.*type='ImageFolder'"):
        DATASETS.build(dict(type='ImageNet', data_root=str(image_root), split='train'))
    with pytest.raises(FileNotFoundError, match=r'image-net\.org'):
        DATASETS.build(dict(type='ImageNet', data_root=str(image_root), split='test'))


class FakeFashion:
    """What torchvision's FashionMNIST offers, without its files."""

    classes = ('shirt', 'shoe')
    targets = torch.tensor([1, 0, 1])

    def __init__(self, root: str, train: bool, download: bool):
        if not download:
            raise RuntimeError('Dataset not found.')
        self.train = train

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new('L', (28, 28), 200), int(self.targets[index])


def test_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchvision.datasets, 'FashionMNIST', FakeFashion)
    cfg = dict(type='TorchvisionDataset', name='FashionMNIST', data_root=str(tmp_path))
    data = DATASETS.build(cfg | dict(download=True, split='val'))
    assert not data.data.train
    assert (len(data), data.metainfo['classes']) == (3, ['shirt', 'shoe'])
    assert data[0]['targets'] == 1
    assert data[0]['inputs'].shape == (3, 28, 28)
    with pytest.raises(FileNotFoundError, match='download=True'):
        DATASETS.build(cfg)
    with pytest.raises(ValueError, match="unknown torchvision dataset 'MNIST'; known: CIFAR10"):
        DATASETS.build(cfg | dict(name='MNIST'))


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100', 'FashionMNIST'])
def test_torchvision_missing_files(name: str, tmp_path: Path) -> None:
    cfg = dict(type='TorchvisionDataset', name=name, data_root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf'no {name} in .*\n.*download=True'):
        DATASETS.build(cfg)


def test_other_files_in_class_folders_are_named_once(image_root, monkeypatch):
    told = []
    monkeypatch.setattr(
        'masa_vit.training.image_datasets.print_log', lambda text, *_: told.append(text)
    )
    before = len(DATASETS.build(dict(type='ImageFolder', data_root=str(image_root), split='val')))
    assert told == []
    cat = image_root / 'val' / 'cat'
    for name in ('notes.txt', 'a.heic', '._0.png', '.hidden.png'):
        (cat / name).write_text('no image')
    (image_root / 'val' / '__MACOSX').mkdir()
    data = DATASETS.build(dict(type='ImageFolder', data_root=str(image_root), split='val'))
    assert len(data) == before
    assert data.metainfo['classes'] == ['cat', 'dog', 'emu']
    (text,) = told
    assert '2 files in the class folders of' in text
    assert 'a.heic, notes.txt' in text
