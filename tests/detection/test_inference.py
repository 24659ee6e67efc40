"""Prediction with detectors: the command, its files, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask

from masa_vit.cli import main
from masa_vit.detection.inference import Detector
from masa_vit.training import load_config, train


@pytest.fixture
def checkpoint(det_config: Path, tmp_path: Path) -> Path:
    """An untrained detector whose scores differ."""
    from mmdet.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(load_config(det_config).model)
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight.normal_()
        model.rpn_head.rpn_cls.weight.normal_()
    meta = {'dataset_meta': {'classes': ('ball', 'cube', 'cone')}}
    path = tmp_path / 'epoch_1.pth'
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture
def detector(det_config: Path, checkpoint: Path) -> Detector:
    return Detector(det_config, checkpoint, 'cpu')


def test_command(
    det_config: Path,
    checkpoint: Path,
    coco_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / 'out'
    sources = [coco_root / 'train2017', f'{coco_root}/val2017/*.jpg']  # the names are the same
    command = ['predict', str(det_config), str(checkpoint), *map(str, sources)]
    options = ['--out', str(out), '--score-thr', '0.2', '--batch-size', '3', '--device', 'cpu']
    options += ['--cfg-options', 'model.test_cfg.rcnn.max_per_img=3']
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert f'predictions: {out / "predictions.json"}' in printed
    assert f'pictures:    {out / "vis"}' in printed
    assert ' x ball ' in printed

    results = json.loads((out / 'predictions.json').read_text())
    assert len(results) == 10
    assert len({result['picture'] for result in results}) == 10
    assert sum(len(result['predictions']) for result in results) >= 10
    for result in results:
        path = Path(result['path'])
        assert Path(result['picture']) == out / 'vis' / path.parent.name / path.name
        original, picture = Image.open(path), Image.open(result['picture'])
        assert picture.size == original.size
        changed = np.abs(np.asarray(picture, int) - np.asarray(original, int)).max() > 100
        assert changed == bool(result['predictions']), 'drawn where something was found'
        scores = [found['score'] for found in result['predictions']]
        assert scores == sorted(scores, reverse=True)
        assert all(score > 0.2 for score in scores)
        for found in result['predictions']:
            assert found['name'] == ('ball', 'cube', 'cone')[found['label']]
            x1, y1, x2, y2 = found['bbox']
            assert 0 <= x1 <= x2 <= original.width
            assert 0 <= y1 <= y2 <= original.height
            assert coco_mask.decode(found['mask']).shape == (original.height, original.width)

    before = (out / 'predictions.json').read_bytes()
    assert main([*command, *options]) == 1
    assert '--force' in capsys.readouterr().err
    assert main([*command[:3], str(coco_root / 'val2017'), *options, '--force']) == 0
    assert (out / 'predictions.json').read_bytes() != before


def test_it_is_mmdets_prediction(
    detector: Detector, det_config: Path, checkpoint: Path, coco_root: Path
) -> None:
    from mmdet.apis import inference_detector, init_detector

    image = coco_root / 'val2017' / '000000000002.jpg'
    (result,) = detector([image], score_thr=0.0)
    model = init_detector(load_config(det_config), str(checkpoint), device='cpu')
    found = inference_detector(model, str(image)).pred_instances
    assert len(found) == len(result['predictions']) > 3
    order = found.scores.argsort(descending=True, stable=True).tolist()
    for index, prediction in zip(order, result['predictions'], strict=True):
        assert prediction['label'] == found.labels[index]
        assert prediction['score'] == pytest.approx(found.scores[index].item(), abs=1e-6)
        assert prediction['bbox'] == pytest.approx(found.bboxes[index].tolist(), abs=0.01)
        mask = coco_mask.decode(prediction['mask'])
        assert np.array_equal(mask.astype(bool), found.masks[index].numpy())


def test_files_of_a_run(det_config: Path, coco_root: Path, tmp_path: Path) -> None:
    """Averaged weights predict; mmdet's inferencer takes them, too, and the checkpoint alone."""
    from mmdet.apis import DetInferencer

    options = {
        'train_cfg.max_epochs': 1,
        'custom_hooks': [dict(type='EMAHook', momentum=0.1), dict(type='SummaryHook')],
        'default_hooks.checkpoint.save_best': None,
        **dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator')),
    }
    path = train(det_config, tmp_path / 'run', cfg_options=options)['checkpoints']['last']
    state = torch.load(path, weights_only=True)
    key = 'roi_head.bbox_head.fc_cls.bias'
    assert not torch.equal(state['state_dict'][key], state['ema_state_dict'][f'module.{key}'])

    image = str(coco_root / 'val2017' / '000000000001.jpg')
    detector = Detector(det_config, path, 'cpu')
    assert torch.equal(detector.inferencer.model.state_dict()[key], state['state_dict'][key])
    ours = detector([image], score_thr=0.0)[0]['predictions']
    assert ours[0]['name'] in ('square', 'disk', 'triangle')
    for number, model in enumerate((str(det_config), None)):
        inferencer = DetInferencer(model, path, 'cpu', show_progress=False)
        out = tmp_path / f'out{number}'
        (found,) = inferencer(image, out_dir=str(out), no_save_pred=False)['predictions']
        assert max(found['scores']) == pytest.approx(ours[0]['score'], abs=1e-6)
        assert len(found['masks']) == len(found['bboxes']) == len(ours)
        saved = json.loads((out / 'preds' / '000000000001.json').read_text())
        assert saved['labels'] == found['labels']
        assert (out / 'vis' / '000000000001.jpg').is_file()


def test_boxes_alone(det_config: Path, checkpoint: Path, coco_root: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    weights = state['state_dict']
    state['state_dict'] = {k: v for k, v in weights.items() if 'mask_head' not in k}
    torch.save(state, checkpoint)
    options = {
        'model.type': 'FasterRCNN',
        'model.roi_head.mask_head': None,
        'model.roi_head.mask_roi_extractor': None,
    }
    detector = Detector(det_config, checkpoint, 'cpu', options)
    image = coco_root / 'val2017' / '000000000001.jpg'
    (result,) = detector([image], score_thr=0.2, pictures=tmp_path / 'vis')
    assert result['predictions']
    assert set(result['predictions'][0]) == {'name', 'label', 'score', 'bbox'}
    assert result['picture'] == str(tmp_path / 'vis' / image.name)


def test_nothing_found(detector: Detector, coco_root: Path, tmp_path: Path) -> None:
    images = sorted((coco_root / 'val2017').iterdir())
    results = detector(images, score_thr=0.9999, pictures=tmp_path / 'vis', batch_size=4)
    assert [result['predictions'] for result in results] == [[]] * 4
    assert len(list((tmp_path / 'vis').iterdir())) == 4
    assert detector([]) == []


def test_the_data_set_need_not_be_there(
    det_config: Path, checkpoint: Path, coco_root: Path, tmp_path: Path
) -> None:
    image = tmp_path / 'a.png'
    Image.open(coco_root / 'val2017' / '000000000001.jpg').save(image)
    shutil.rmtree(coco_root)
    assert Detector(det_config, checkpoint, 'cpu')([image], 0.0)[0]['predictions']


def test_pictures_of_other_formats(detector: Detector, coco_root: Path, tmp_path: Path) -> None:
    """A PGM or GIF could not hold the colours: these get a PNG."""
    image = Image.open(coco_root / 'val2017' / '000000000001.jpg')
    paths = [tmp_path / name for name in ('a.bmp', 'a.png', 'A.PNG')]
    for path in paths:
        image.save(path)
    results = detector(paths, pictures=tmp_path / 'vis')
    assert [Path(r['picture']).name for r in results] == ['a.bmp.png', 'a.png', 'A.PNG']


def spoil(folder: Path, how: str) -> Path:
    last = sorted(folder.iterdir())[-1]
    content = last.read_bytes()
    # OpenCV fills what is missing up with grey, and says so on stderr only
    last.write_bytes(content[: len(content) // 2] if how == 'truncated' else b'no image')
    return last


@pytest.mark.parametrize('how', ['truncated', 'no image'])
def test_unreadable_image(
    det_config: Path,
    checkpoint: Path,
    coco_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    how: str,
) -> None:
    bad = spoil(coco_root / 'val2017', how)
    out = tmp_path / 'out'
    command = ['predict', str(det_config), str(checkpoint), str(coco_root / 'val2017')]
    assert main([*command, '--out', str(out)]) == 1
    assert f'cannot read the image {bad}' in capsys.readouterr().err
    assert not out.exists(), 'found before the first prediction'
    assert main([*command, '--out', str(out), '--on-error', 'skip', '--batch-size', '2']) == 0
    assert '1 of 4 images could not be read' in capsys.readouterr().out
    results = json.loads((out / 'predictions.json').read_text())
    assert ['error' in result for result in results] == [False, False, False, True]
    assert str(bad) in results[3]['error']
    assert len(list((out / 'vis').iterdir())) == 3


def test_image_that_opencv_does_not_know(
    detector: Detector, coco_root: Path, tmp_path: Path
) -> None:
    image = Image.open(coco_root / 'val2017' / '000000000001.jpg')
    image.save(tmp_path / 'a.gif')
    (found,) = detector([tmp_path / 'a.gif'], score_thr=0.0, pictures=tmp_path / 'vis')
    assert Image.open(found['picture']).size == image.size


def test_checkpoint_that_does_not_fit(det_config: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'num_classes(.|\n)*fc_cls\.weight'):
        Detector(det_config, checkpoint, 'cpu', {'model.roi_head.bbox_head.num_classes': 4})
    with pytest.raises(ValueError, match='dense'):  # the other way round: a MASA checkpoint
        Detector(det_config, dense(checkpoint, tmp_path), 'cpu')
    state = torch.load(checkpoint, weights_only=True)
    del state['state_dict']['neck.levels.0.1.weight']
    torch.save(state, tmp_path / 'part.pth')
    with pytest.raises(ValueError, match=r'part\.pth(.|\n)*neck\.levels\.0\.1\.weight'):
        Detector(det_config, tmp_path / 'part.pth', 'cpu')
    (tmp_path / 'cut.pth').write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match='truncated'):
        Detector(det_config, tmp_path / 'cut.pth', 'cpu')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        Detector(det_config, tmp_path / 'nowhere.pth', 'cpu')


def dense(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint of a model without atoms."""
    state = torch.load(checkpoint, weights_only=True)
    weights = state['state_dict']
    for key in [k for k in weights if '.banks.' in k or '.coef.' in k]:
        del weights[key]
    for block in range(4):
        for name in ('q', 'k', 'v'):
            weights[f'backbone.vit.blocks.{block}.attn.{name}_proj.weight'] = torch.zeros(32, 32)
    torch.save(state, folder / 'dense.pth')
    return folder / 'dense.pth'


def test_wrong_arguments(
    det_config: Path,
    checkpoint: Path,
    detector: Detector,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    command = ['predict', str(det_config), str(checkpoint), str(tmp_path)]
    for options, message in (
        (['--topk', '3'], '--topk is not for a detector'),
        (['--out', 'a.json'], 'a detector writes a folder'),
        (['--out', str(checkpoint)], 'a detector writes a folder'),
        (['--cfg-options', 'model.typ=X'], 'MaskRCNN has no such argument'),
        (['--cfg-options', 'default_scope=mmengine'], "model.type is 'MaskRCNN'; expected"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err
    for wrong in (dict(score_thr=1.0), dict(batch_size=0), dict(on_error='ignore')):
        with pytest.raises(ValueError, match=f'{next(iter(wrong))} expects'):
            detector([], **wrong)
    options = {'test_dataloader': None, 'val_dataloader': None}
    with pytest.raises(ValueError, match=r'no test_dataloader\.dataset\.pipeline'):
        Detector(det_config, checkpoint, 'cpu', options)
