"""`masa-vit test` and `compare` on detectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from masa_vit.cli import main
from masa_vit.training import train
from masa_vit.training.comparison import compare

SHORT = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.dataset.indices': 2,
    'model.test_cfg.rcnn.max_per_img': 5,
}
UNVALIDATED = {
    'default_hooks.checkpoint.save_best': None,
    **dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator')),
}


def test_metrics(
    det_config: Path, coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    summary = train(det_config, tmp_path / 'run', cfg_options=SHORT | UNVALIDATED)
    checkpoint = summary['checkpoints']['last']
    annotations = coco_root / 'annotations' / 'instances_val2017.json'
    content = json.loads(annotations.read_text())  # no triangles in the validation set
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 7]
    annotations.write_text(json.dumps(content))
    capsys.readouterr()

    out, results = tmp_path / 'metrics.json', tmp_path / 'results'
    command = ['test', str(det_config), checkpoint, '--work-dir', str(tmp_path), '--out', str(out)]
    options = ['test_evaluator.classwise=True', f'test_evaluator.outfile_prefix={results}']
    assert main([*command, '--cfg-options', *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert out.read_text() == (tmp_path / 'test' / 'metrics.json').read_text()
    record = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert record['config'] == str(det_config)
    assert record['checkpoint'] == checkpoint
    metrics = record['metrics']
    assert f'coco/bbox_mAP: {metrics["coco/bbox_mAP"]:.6g}' in lines
    assert f'coco/square_precision: {metrics["coco/square_precision"]:.6g}' in lines
    assert metrics['coco/triangle_precision'] is None, 'NaN is no JSON'
    for kind in ('bbox', 'segm'):
        found = json.loads(Path(f'{results}.{kind}.json').read_text())
        assert {'image_id', 'bbox', 'score', 'category_id'} <= set(found[0])


def test_compare(det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Also: runs in one process keep their TensorBoard files and pictures apart."""
    dense = tmp_path / 'dense.py'
    dense.write_text(
        f"_base_ = '{det_config}'\n"
        "model = dict(backbone=dict(model_name='vit_tiny_patch16_224', model_args=dict("
        '_delete_=True, img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2)))\n'
    )
    rows = compare([det_config, dense], tmp_path / 'pair', seed=0, cfg_options=SHORT)
    printed = capsys.readouterr().out
    assert [row['metric'] for row in rows] == ['coco/bbox_mAP'] * 2
    assert [row['half_width'] for row in rows] == [None, None]
    assert rows[0]['attention_parameters'] < rows[1]['attention_parameters']
    assert rows[0]['coefficients']
    assert 'bbox_mAP of the last epoch\n' in printed, 'no interval: it is not an accuracy'
    assert 'a small difference ranks nothing' in printed
    table = (tmp_path / 'pair' / 'compare.md').read_text()
    assert table.startswith('| name | bbox_mAP |')
    for row in rows:
        folder = tmp_path / 'pair' / row['name']
        versions = json.loads((folder / 'summary.json').read_text())['versions']
        assert {'onedl-mmcv', 'onedl-mmdetection'} <= set(versions)
        assert len(list(folder.rglob('val_*.png'))) == 2
        assert len(list(folder.rglob('events.*'))) == 1
