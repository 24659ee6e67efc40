from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from safetensors.torch import save_file

from masa_vit.cli import main
from masa_vit.cli.predict import add_arguments, run
from masa_vit.training.prediction import Predictor
from masa_vit.utils.images import find_images

Tiny = Callable[..., dict]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('predict')


@pytest.fixture(scope='module')
def image_root(make_image_root: Callable[[Path], Path], folder: Path) -> Path:
    return make_image_root(folder / 'data')


@pytest.fixture(scope='module')
def run_once(tiny: Tiny, image_root: Path, folder: Path) -> tuple[Config, Path]:
    """A config and the checkpoint of a run of it, trained for a few steps, with EMA."""
    from mmengine.runner import Runner

    torch.manual_seed(0)
    pipeline = [dict(type='Albumentations', transforms=[dict(type='Resize', height=16, width=16)])]
    dataset = dict(type='ImageFolder', data_root=str(image_root), pipeline=pipeline)

    def loader(split: str) -> dict:
        return dict(
            batch_size=8,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            collate_fn=dict(type='default_collate'),
            dataset=dict(**dataset, split=split),
        )

    cfg = Config(
        dict(
            model=tiny(),
            data_preprocessor=dict(type='ImagePreprocessor', mean=[128.0] * 3, std=[64.0] * 3),
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            val_evaluator=dict(type='Accuracy'),
            train_cfg=dict(by_epoch=True, max_epochs=12, val_interval=12),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=5e-3)),
            default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=12)),
            custom_hooks=[dict(type='EMAHook', momentum=0.1)],
            work_dir=str(folder / 'run'),
            default_scope='mmengine',
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )
    kept = copy.deepcopy(cfg)
    Runner.from_cfg(cfg).train()
    return kept, folder / 'run' / 'epoch_12.pth'


@pytest.fixture
def trained(run_once: tuple[Config, Path], tmp_path: Path) -> tuple[Config, Path]:
    """The run, with a config that a test may change; it is also in `tmp_path / 'config.py'`."""
    cfg, checkpoint = copy.deepcopy(run_once[0]), run_once[1]
    cfg.dump(tmp_path / 'config.py')
    return cfg, checkpoint


def test_end_to_end(
    trained: tuple[Config, Path],
    image_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    cfg, checkpoint = trained
    out = tmp_path / 'predictions.json'
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    command = [str(tmp_path / 'config.py'), str(checkpoint), str(image_root / 'val')]
    options = ['--topk', '2', '--out', str(out), '--batch-size', '5', '--device', 'cpu']
    args = parser.parse_args([*command, *options])
    assert run(args) == 0
    printed = capsys.readouterr().out
    assert str(out) in printed
    results = json.loads(out.read_text())
    assert len(results) == 12
    for result in results:
        best, second = result['predictions']
        assert best['name'] in result['path'].split(os.sep)
        assert best['probability'] >= second['probability']
        assert ['cat', 'dog', 'emu'][best['index']] == best['name']
    content = out.read_text()
    with pytest.raises(FileExistsError, match='--force'):
        run(args)
    with pytest.raises(NotADirectoryError, match='expected a folder'):
        run(parser.parse_args([*command, '--out', str(out / 'a.json')]))
    assert out.read_text() == content
    assert run(parser.parse_args([*command, *options, '--force'])) == 0

    # the averaged weights predict, as they do in validation
    state = torch.load(checkpoint, weights_only=False)
    averaged = state['state_dict']
    last = {k.removeprefix('module.'): v for k, v in state['ema_state_dict'].items()}
    assert not torch.equal(averaged['model.head.weight'], last['model.head.weight'])
    predictor = Predictor(cfg, checkpoint, 'cpu')
    assert torch.equal(predictor.model.model.head.weight, averaged['model.head.weight'])
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    data = predictor.model.data_preprocessor(
        {'inputs': torch.stack([dataset[i]['inputs'] for i in range(12)])}
    )
    expected = predictor.model(**data).softmax(1).max(1)
    found = predictor(dataset.paths, topk=1)
    for result, probability in zip(found, expected.values.tolist(), strict=True):
        assert result['predictions'][0]['probability'] == pytest.approx(probability, abs=1e-5)


def test_class_names_without_a_checkpoint_that_knows_them(
    tiny: Tiny, trained: tuple[Config, Path], tmp_path: Path
) -> None:
    cfg, checkpoint = trained
    weights = {
        key.removeprefix('model.'): value
        for key, value in torch.load(checkpoint, weights_only=False)['state_dict'].items()
    }
    path = tmp_path / 'weights.safetensors'
    save_file(weights, path)
    assert Predictor(cfg, path, 'cpu').classes == ['cat', 'dog', 'emu']
    options = {'val_dataloader.dataset.data_root': 'nowhere'}
    assert Predictor(cfg, path, 'cpu', options).classes == ['0', '1', '2']


def test_shipped_config_by_its_name(tmp_path: Path) -> None:
    from masa_vit.training import load_config

    name = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'
    cfg = load_config(name)
    path = tmp_path / 'weights.safetensors'
    save_file(MODELS.build(dict(cfg.model)).model.state_dict(), path)
    assert Predictor(name, path, 'cpu').classes == list('0123456789')
    with pytest.raises(ValueError, match="did you mean 'val_dataloader'"):
        Predictor(name, path, 'cpu', {'val_dataloadr.batch_size': 1})
    with pytest.raises(FileNotFoundError, match='vit_tiny_masa_s4_digits'):
        Predictor('masa_vit::cls/vit_tiny_masa_s4_digit.py', path)


def test_a_loaded_config_stays_as_it_was(trained: tuple[Config, Path]) -> None:
    cfg, checkpoint = trained
    before = cfg.to_dict()
    Predictor(cfg, checkpoint, 'cpu', {'model.label_smoothing': 0.1})
    assert cfg.to_dict() == before


def test_checkpoint_that_does_not_fit(trained: tuple[Config, Path], tmp_path: Path) -> None:
    cfg, checkpoint = trained
    with pytest.raises(FileNotFoundError, match='does not exist'):
        Predictor(cfg, tmp_path / 'nowhere.pth')
    with pytest.raises(ValueError, match=r'num_classes(.|\n)*head'):
        Predictor(cfg, checkpoint, cfg_options={'model.num_classes': 4})
    with pytest.raises(ValueError, match='does not match this MasaVisionTransformer'):
        Predictor(cfg, checkpoint, cfg_options={'model.model_args.img_size': 32})
    with pytest.raises(ValueError, match='checkpoint of a MASA model'):
        Predictor(cfg, checkpoint, cfg_options={'model.model_name': 'vit_tiny_patch16_224'})
    truncated = tmp_path / 'truncated.pth'
    truncated.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match='truncated'):
        Predictor(cfg, truncated)


@pytest.mark.parametrize('on_error', ['raise', 'skip'])
def test_unreadable_image(
    trained: tuple[Config, Path], image_root: Path, tmp_path: Path, on_error: str
) -> None:
    bad = tmp_path / 'bad.png'
    bad.write_text('no image')
    images = [*find_images([image_root / 'val' / 'cat']), bad]
    predictor = Predictor(*trained, 'cpu')
    if on_error == 'raise':
        with pytest.raises(ValueError, match=f'cannot read the image {bad}'):
            predictor(images)
        return
    results = predictor(images, on_error='skip', batch_size=1)
    assert [('error' in r, 'predictions' in r) for r in results] == [(False, True)] * 4 + [
        (True, False)
    ]


def test_table_of_odd_names(
    trained: tuple[Config, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('COLUMNS', '300')  # a terminal that is wide enough for the path
    (tmp_path / '[b]').mkdir()
    bad = tmp_path / '[b]' / 'a[1].png'
    bad.write_text('no image')
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    command = [str(tmp_path / 'config.py'), str(trained[1]), str(bad), '--on-error', 'skip']
    assert run(parser.parse_args(command)) == 0
    printed = ''.join(capsys.readouterr().out.split())
    assert 'unreadable' in printed
    assert '[b]' in printed
    assert '1of1imagescouldnotberead' in printed


def test_wrong_options(
    trained: tuple[Config, Path],
    image_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    command = ['predict', str(tmp_path / 'config.py'), str(trained[1]), str(image_root / 'val')]
    for options, message in (
        (['--score-thr', '0.5'], '--score-thr is not for a classifier'),
        (['--out', str(tmp_path), '--force'], 'is a folder, expected a file'),
        (['--batch-size', '0'], 'at least 1, got 5 and 0'),
        (['--cfg-options', 'model.type=Other'], "model.type is 'Other'; expected ImageClassifier"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err


def test_bad_arguments(trained: tuple[Config, Path]) -> None:
    predictor = Predictor(*trained, 'cpu')
    with pytest.raises(ValueError, match='at least 1, got 0'):
        predictor([], topk=0)
    with pytest.raises(ValueError, match="got 'ignore'"):
        predictor([], on_error='ignore')
    assert predictor([]) == []


def test_images_of_different_sizes(
    trained: tuple[Config, Path], image_root: Path, tmp_path: Path
) -> None:
    from PIL import Image

    cfg, checkpoint = trained
    paths = [tmp_path / f'{side}.png' for side in (16, 20)]
    for path, side in zip(paths, (16, 20), strict=True):
        Image.new('RGB', (side, side)).save(path)
    cfg.val_dataloader.dataset.pipeline = []
    with pytest.raises(ValueError, match='images of different sizes'):
        Predictor(cfg, checkpoint, 'cpu')(paths)


def test_model_is_built_without_initial_weights(trained: tuple[Config, Path]) -> None:
    cfg, checkpoint = trained
    cfg.model.init_from = 'gone.pth'
    assert Predictor(cfg, checkpoint, 'cpu').classes == ['cat', 'dog', 'emu']
