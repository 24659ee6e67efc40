"""A trained run folds to a config and a checkpoint without atoms."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config

import masa_vit
from masa_vit.cli import main
from masa_vit.export.folding import MASA_ARGS
from masa_vit.training import load_config
from masa_vit.training import test as evaluate
from masa_vit.training.config_variants import load_variant
from masa_vit.training.model_building import build_model
from masa_vit.training.prediction import Predictor
from masa_vit.training.run_folding import dense_config, fold_run

PIPELINE = [dict(type='Albumentations', transforms=[dict(type='Resize', height=16, width=16)])]


@pytest.fixture
def trained(tiny: Any, image_root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Config and checkpoint of a classifier."""
    from mmengine.registry import MODELS

    import masa_vit.training  # noqa: F401

    dataset = dict(type='ImageFolder', data_root=str(image_root), split='val', pipeline=PIPELINE)
    model = tiny(model_args=dict(num_atoms=3, coefficients='mlp'), init_from='weights.pth')
    cfg = Config(
        dict(
            custom_imports=dict(imports=['masa_vit.training', 'masa_vit.training']),
            model=model,
            val_dataloader=dict(batch_size=4, dataset=dataset),
        )
    )
    cfg.dump(tmp_path / 'mine.py')
    built = MODELS.build({**model, 'init_from': None})
    with torch.no_grad():
        built.model.head.weight.normal_()
    meta = {'dataset_meta': {'classes': ['cat', 'dog', 'emu']}, 'cfg': cfg.pretty_text}
    torch.save({'meta': meta, 'state_dict': built.state_dict()}, tmp_path / 'epoch_1.pth')
    return tmp_path / 'mine.py', tmp_path / 'epoch_1.pth'


def test_norms_of_another_epsilon() -> None:
    """timm has a name for norms of CLIP's, and a class, which no config holds, for others."""
    args = dict(norm_eps=1e-5, depth=2, embed_dim=32, num_heads=2, img_size=32, num_atoms=1)
    model = dict(
        type='ImageClassifier', model_name='vit_tiny_masa_s4', model_args=args, num_classes=3
    )
    folded = build_model(dense_config(Config(dict(model=model))))
    assert folded.model.norm.eps == 1e-5
    masa = masa_vit.fold(build_model(Config(dict(model=model))))
    assert folded.state_dict().keys() == masa.state_dict().keys()
    mine = dict(args, norm_eps=None, norm_layer=torch.nn.LayerNorm)
    config = Config(dict(model=dict(model, model_args=mine)))
    assert dense_config(config).model.model_args.norm_layer is torch.nn.LayerNorm
    args['norm_eps'] = 1e-4
    with pytest.raises(ValueError, match=r'norm_eps=0\.0001 as a class only'):
        dense_config(Config(dict(model=model)))


def test_a_classifier(trained: tuple[Path, Path], tmp_path: Path, image_root: Path) -> None:
    assert main(['fold', *map(str, trained), '--out', str(tmp_path / 'out')]) == 0
    folded = tmp_path / 'out' / 'mine_folded.py', tmp_path / 'out' / 'mine_folded.pth'
    model = load_config(folded[0]).model
    assert model.model_name == 'vit_tiny_patch16_224'
    assert 'num_atoms' not in model.model_args
    assert 'init_from' not in model
    images = sorted((image_root / 'val').rglob('*.png'))
    before, after = (Predictor(*files, 'cpu')(images) for files in (trained, folded))
    for a, b in zip(before, after, strict=True):
        assert [p['name'] for p in a['predictions']] == [p['name'] for p in b['predictions']]
        for p, q in zip(a['predictions'], b['predictions'], strict=True):
            assert p['probability'] == pytest.approx(q['probability'], abs=1e-4)


def test_nothing_is_overwritten(trained: tuple[Path, Path], tmp_path: Path) -> None:
    fold_run(*trained, tmp_path)
    before = (tmp_path / 'mine_folded.pth').stat().st_mtime_ns
    with pytest.raises(FileExistsError, match='--force'):
        fold_run(*trained, tmp_path)
    assert (tmp_path / 'mine_folded.pth').stat().st_mtime_ns == before
    fold_run(*trained, tmp_path, force=True)
    assert (tmp_path / 'mine_folded.pth').stat().st_mtime_ns > before


def test_a_dense_run_and_a_foreign_checkpoint(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folded = fold_run(*trained, tmp_path / 'a')
    with pytest.raises(ValueError, match='nothing to fold'):
        fold_run(*folded, tmp_path / 'b')
    with pytest.raises(ValueError, match='the checkpoint is dense'):
        fold_run(trained[0], folded[1], tmp_path / 'b')
    cut = torch.load(trained[1])
    del cut['state_dict']['model.head.weight']
    torch.save(cut, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match=r'(?s)cut\.pth does not match.*model\.head\.weight'):
        fold_run(trained[0], tmp_path / 'cut.pth', tmp_path / 'b')
    assert not (tmp_path / 'b').exists()


def test_a_wrong_result_is_not_written(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import masa_vit

    right = masa_vit.fold

    def wrong(model: torch.nn.Module) -> torch.nn.Module:
        folded = right(model)
        with torch.no_grad():
            folded.model.head.bias.add_(1)
        return folded

    monkeypatch.setattr(masa_vit, 'fold', wrong)
    with pytest.raises(ValueError, match=r'differ by \S+ of the largest'):
        fold_run(*trained, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['cls/vit_tiny_masa_s4_digits', 'det/mask_rcnn_vit_masa'])
def test_config_of_the_dense_model(name: str) -> None:
    folded = dense_config(load_config(f'masa_vit::{name}.py'))
    dense = load_variant(f'masa_vit::{name}.py', dense=True).model
    node = dense.get('backbone', dense)
    if 'model_args' not in folded.model.get('backbone', folded.model):
        assert not node.pop('model_args')
    assert folded.model == dense


def test_a_distilled_compressed_model_folds_to_one_without_teacher_and_folder(
    tiny: Any, image_root: Path, tmp_path: Path
) -> None:
    import masa_vit

    args = tiny()['model_args']
    dense = timm.create_model('vit_tiny_patch16_224', num_classes=3, **args)
    folder = tmp_path / 'compressed'
    timm.models.save_for_hf(masa_vit.compress(dense, 2), folder, safe_serialization=True)
    teacher = dict(model_name='vit_tiny_patch16_224', model_args=args, init_from='nowhere.pth')
    cfg = Config(
        dict(
            custom_imports=dict(imports=['masa_vit.training', 'masa_vit.training']),
            default_scope='mmengine',
            model=dict(
                type='DistilledClassifier',
                model_name=f'local-dir:{folder}',
                model_args=dict(drop_path_rate=0.1),
                num_classes=3,
                init_from=str(folder),
                teacher=teacher,
                alpha=0.7,
                temperature=3.0,
                feature_weight=1.0,
            ),
            val_dataloader=dict(
                batch_size=4,
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='ImageFolder', data_root=str(image_root), split='val', pipeline=PIPELINE
                ),
            ),
            val_cfg=dict(),
            val_evaluator=dict(type='Accuracy'),
        )
    )
    cfg.dump(tmp_path / 'mine.py')
    model = build_model(cfg)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'epoch_1.pth')
    trained = tmp_path / 'mine.py', tmp_path / 'epoch_1.pth'
    folded = fold_run(*trained, tmp_path / 'out')
    before = evaluate(*trained, tmp_path / 'a')
    images = sorted((image_root / 'val').rglob('*.png'))
    expected = Predictor(*trained, 'cpu')(images)
    shutil.rmtree(folder)
    found = load_config(folded[0]).model.to_dict()
    found_args = found.pop('model_args')
    assert {**args, 'drop_path_rate': 0.1, 'img_size': [16, 16]}.items() <= found_args.items()
    assert not MASA_ARGS & found_args.keys()
    assert found == dict(type='ImageClassifier', model_name='vit_tiny_patch16_224', num_classes=3)
    assert evaluate(*folded, tmp_path / 'b') == before
    for a, b in zip(expected, Predictor(*folded, 'cpu')(images), strict=True):
        scores = [{p['name']: p['probability'] for p in r['predictions']} for r in (a, b)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_folder_with_a_dense_model_stays_a_folder(tiny: Any, tmp_path: Path) -> None:
    args = tiny()['model_args']
    dense = timm.create_model('vit_tiny_patch16_224', num_classes=3, **args)
    timm.models.save_for_hf(dense, tmp_path, safe_serialization=True)
    cfg = Config(dict(model=tiny(model_name=f'local-dir:{tmp_path}', model_args={})))
    assert dense_config(cfg).model == cfg.model
