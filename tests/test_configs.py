"""Every shipped config can be built: model (on the meta device), optimizer, data, hooks."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, HOOKS, MODELS, PARAM_SCHEDULERS

from masa_vit.inspection import count_parameters
from masa_vit.training import ImageDataset, load_config
from masa_vit.training import test as evaluate
from masa_vit.training.run_table import is_table, load_table

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = {path.stem: path for path in sorted((ROOT / 'cls').glob('*.py'))}
MASA = [name for name in CONFIGS if '_masa_s4_' in name]
# side of the images in the files, by dataset
SIDES = {
    'digits': 8,
    'cifar10': 32,
    'cifar10_torchvision': 32,
    'cifar100': 32,
    'cifar100_torchvision': 32,
    'tiny_imagenet': 64,
    'fashion_mnist': 28,
}


class Fake(ImageDataset):
    """Two images in place of the data, through the config's pipeline."""

    def __init__(self, size: tuple[int, int], pipeline: list):
        super().__init__(['a', 'b'], [0, 1], pipeline)
        self.images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)

    def load(self, index: int) -> np.ndarray:
        return self.images[index]


@pytest.fixture(scope='module')
def work_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the folders that configs name, as compressing leaves them, but for the weights."""
    place = tmp_path_factory.mktemp('work_place')
    d64 = load_config(CONFIGS['vit_d64_l12_masa_s4_cifar10']).model.model_args.to_dict()
    for name, size, args in (('d64', 'tiny', d64), ('vit_base', 'base', {})):
        folder = place / 'work_dirs' / f'compressed_{name}'
        folder.mkdir(parents=True)
        config = {
            'architecture': f'vit_{size}_masa_s4',
            'num_classes': 10,
            'model_args': args,
            'pretrained_cfg': {'num_classes': 10, 'classifier': 'head'},
        }
        (folder / 'config.json').write_text(json.dumps(config))
    return place


@pytest.fixture(autouse=True)
def _at_work(work_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work_place)


def meta_model(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def dataset_name(name: str) -> str:
    return next((d for d in sorted(SIDES, key=len, reverse=True) if name.endswith(d)), 'other')


@pytest.mark.parametrize('path', sorted((ROOT / 'studies').glob('*.py')), ids=lambda p: p.stem)
def test_studies(path: Path) -> None:
    if not is_table(path):
        assert load_config(path).train_cfg.max_epochs == 15
        return
    for row in load_table(path).rows:
        if row.match:
            assert abs(float(re.search(r': ([-+.0-9]+)%', row.match)[1])) < 5


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_optimizer(name: str) -> None:
    cfg = load_config(CONFIGS[name])
    model = meta_model(cfg)
    size = model.model.patch_embed.img_size
    images = torch.empty(2, 3, *size, device='meta')
    assert model(images).shape == (2, cfg.model.num_classes)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    grouped = [id(p) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for scheduler in cfg.param_scheduler:
        args = dict(scheduler, optimizer=wrapper.optimizer, epoch_length=10)
        if not scheduler.get('convert_to_iter_based'):
            del args['epoch_length']
        PARAM_SCHEDULERS.build({'end': cfg.train_cfg.max_epochs, **args})
    assert cfg.auto_scale_lr.base_batch_size >= cfg.train_dataloader.batch_size


@pytest.mark.parametrize('name', CONFIGS)
def test_data(name: str) -> None:
    cfg = load_config(CONFIGS[name])
    preprocessor = MODELS.build(cfg.get('data_preprocessor', dict(type='ImagePreprocessor')))
    side = SIDES.get(dataset_name(name))
    size = (side, side) if side else (300, 280)
    img_size = cfg.model.get('model_args', {}).get('img_size', 224)
    if cfg.model.model_name.startswith('local-dir:'):
        (img_size, _) = meta_model(cfg).model.patch_embed.img_size
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset_cfg = dict(loader.dataset)
        dataset_type = DATASETS.get(dataset_cfg.pop('type'))
        inspect.signature(dataset_type).bind(**dataset_cfg)
        dataset = Fake(size, dataset_cfg.get('pipeline', []))
        DATA_SAMPLERS.build(dict(loader.sampler, dataset=dataset, seed=0))
        batch = FUNCTIONS.get(loader.collate_fn.type)([dataset[0], dataset[1]])
        images = preprocessor(batch)['inputs']
        assert images.shape == (2, 3, img_size, img_size)
        assert images.abs().max() < 5, 'the images are not normalised'
    Evaluator(cfg.val_evaluator)


@pytest.mark.parametrize('name', CONFIGS)
def test_hooks(name: str) -> None:
    cfg = load_config(CONFIGS[name])
    for hook in [*cfg.default_hooks.values(), *cfg.custom_hooks]:
        HOOKS.build(hook)
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1'


@pytest.mark.parametrize('name', MASA)
def test_attention_saved(name: str) -> None:
    counts = count_parameters(meta_model(load_config(CONFIGS[name])))
    expected = 5 / 6 if '_l24_' in name else 2 / 3
    assert 1 - counts.attention / counts.dense_attention == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize('name', CONFIGS)
def test_testing_is_left_to_the_validation_data(name: str) -> None:
    """A test loader of its own would not follow an override of the validation loader."""
    assert not {'test_dataloader', 'test_evaluator', 'test_cfg'} & set(load_config(CONFIGS[name]))


def test_override_of_the_validation_data_reaches_the_test(tmp_path: Path) -> None:
    small = {'model.model_args.embed_dim': 32, 'model.model_args.depth': 4}
    config = CONFIGS['vit_tiny_masa_s4_digits']
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': MODELS.build(load_config(config, small).model).state_dict()}, path)
    for split, count in (('val', 360), ('train', 1437)):
        options = {**small, 'val_dataloader.dataset.split': split}
        metrics = evaluate(config, path, tmp_path / split, cfg_options=options)
        assert metrics['accuracy/num_samples'] == count


@pytest.mark.parametrize('platform', ['linux', 'darwin'])
def test_start_method_is_the_platforms(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr('sys.platform', platform)
        cfg = load_config(CONFIGS['vit_tiny_masa_s4_digits'])
    assert cfg.env_cfg.mp_cfg.mp_start_method == ('fork' if platform == 'linux' else 'spawn')
    cfg.dump(tmp_path / 'dumped.py')
    assert load_config(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('data', ['cifar10', 'cifar100'])
def test_torchvision_variants_differ_in_the_data_only(data: str) -> None:
    name = f'vit_d64_l12_masa_s4_{data}'
    files, downloaded = (load_config(CONFIGS[n]) for n in (name, f'{name}_torchvision'))
    for split in ('train', 'val'):
        old, new = (cfg[f'{split}_dataloader'].pop('dataset') for cfg in (files, downloaded))
        assert new.type == 'TorchvisionDataset'
        assert new.name == data.upper()
        assert new.download
        assert (new.split, new.get('pipeline')) == (split, old.get('pipeline'))
    downloaded.pop('_data')
    assert downloaded.to_dict() == files.to_dict()


@pytest.mark.parametrize('path', sorted((ROOT / '_base_').rglob('*.py')), ids=lambda p: p.stem)
def test_base_is_used(path: Path) -> None:
    texts = [other.read_text() for other in ROOT.rglob('*.py') if other != path]
    assert any(
        f'{path.parent.name}/{path.name}' in text or f'/{path.name}' in text for text in texts
    )
