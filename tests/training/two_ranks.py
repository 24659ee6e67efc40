"""Run by test_distributed.py, once a rank: RANK FOLDER; writes what it saw to FOLDER/RANK.json."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
import torch.distributed as dist
import torchvision.datasets
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS
from PIL import Image

import masa_vit.training  # noqa: F401  registers its classes
from masa_vit.training.image_datasets import IGNORE_INDEX


class SlowDownload:
    """Stands for torchvision's FashionMNIST; notes who downloads."""

    classes = ('shirt', 'shoe')
    targets = (1, 0)

    def __init__(self, root, train, download):
        self.file = Path(root) / 'data'
        if self.file.exists():
            return
        with open(Path(root) / 'downloads', 'a') as log:
            log.write(f'rank {dist.get_rank()}\n')
        time.sleep(0.5)
        if not train:
            raise OSError('no network')
        self.file.touch()

    def __getitem__(self, index):
        return Image.new('L', (28, 28)), self.targets[index]


def download(folder, split):
    """How many images there are after a download, or the error."""
    root = folder / split
    root.mkdir(exist_ok=True)
    cfg = dict(type='TorchvisionDataset', name='FashionMNIST', data_root=str(root), split=split)
    try:
        return len(DATASETS.build(cfg | dict(download=True)))
    except Exception as error:
        return f'{type(error).__name__}: {error}'


def skipped_images(rank):
    """What SkippedImagesHook says where rank 0 skips one image and rank 1 two."""
    told = []
    runner = SimpleNamespace(logger=SimpleNamespace(log=lambda _, text: told.append(text)), iter=9)
    hook = HOOKS.build(dict(type='SkippedImagesHook'))
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, {'targets': torch.tensor([0, *[IGNORE_INDEX] * (1 + rank)])})
    hook.after_val_epoch(runner)
    return told


ARGS = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def teacher(folder, rank):
    """What a distilled classifier takes besides."""
    torch.manual_seed(2)
    path = folder / f'teacher{rank}.pth'
    name = 'vit_tiny_patch16_224'
    torch.save(timm.create_model(name, num_classes=3, **ARGS).state_dict(), path)
    teacher = dict(model_name=name, model_args=ARGS, init_from=str(path))
    return dict(
        type='DistilledClassifier', teacher=teacher, feature_weight=1.0, grad_checkpointing=True
    )


def train_step(rank, **kwargs):
    """The change of a bias in a step where rank 1 could read no image, and without rank 1."""
    torch.manual_seed(0)
    cfg = dict(type='ImageClassifier', model_name='vit_tiny_masa_s2', model_args=ARGS) | kwargs
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 2, 0])
    changes = []
    for shared in (True, False):
        torch.manual_seed(1)
        model = MODELS.build(cfg | dict(num_classes=3))
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        unreadable = shared and rank == 1
        batch = dict(inputs=images, targets=targets.where(torch.tensor(not unreadable), -100))
        before = model.model.head.bias.detach().clone()
        (MMDistributedDataParallel(model) if shared else model).train_step(batch, optimizer)
        changes.append((model.model.head.bias.detach() - before).tolist())
    return changes


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group(
        'gloo',
        init_method=(folder / 'meet').as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torchvision.datasets.FashionMNIST = SlowDownload
    seen = dict(
        download=download(folder, 'train'),
        no_network=download(folder, 'val'),
        skipped=skipped_images(rank),
        changes=[train_step(rank), train_step(rank, **teacher(folder, rank))],
    )
    (folder / f'{rank}.json').write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
