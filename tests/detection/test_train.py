"""A detector trains, is killed and resumed, is tested and folded: the commands as users type them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from masa_vit.cli import main
from masa_vit.training import load_config, train
from masa_vit.training import test as evaluate
from masa_vit.training.run_folding import fold_run

ROOT = Path(__file__).resolve().parents[2]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.slow
def test_train_test_and_fold(
    det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / 'run'
    assert main(['train', str(det_config), '--work-dir', str(run)]) == 0
    assert 'coco/bbox_mAP' in capsys.readouterr().out
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['finished']
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(summary['metrics'])
    assert [record['loss'] > 0 for record in summary['history']] == [True, True]
    assert summary['parameters']['attention'] < summary['parameters']['dense_attention']

    checkpoint = run / 'epoch_2.pth'
    # scores of a detector that has learnt nothing are equal but for rounding: no thresholds
    metrics = evaluate(det_config, checkpoint, tmp_path / 'a')
    assert metrics['coco/bbox_mAP'] == summary['metrics']['coco/bbox_mAP']['last']
    folded = fold_run(det_config, checkpoint, tmp_path / 'folded')
    assert not [key for key in weights(folded[1]) if 'banks' in key or 'coef' in key]
    assert 'masa_s4' not in folded[0].read_text()
    assert evaluate(*folded, tmp_path / 'b') == pytest.approx(metrics, abs=1e-4)


def predictions(config: Path, checkpoint: Path, image: Path) -> tuple[torch.Tensor, ...]:
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(load_config(config), str(checkpoint), device='cpu')
    found = inference_detector(model, str(image)).pred_instances
    return found.bboxes, found.scores, found.masks.float()


def test_the_folded_detector_predicts_the_same(
    det_config: Path, coco_root: Path, tmp_path: Path
) -> None:
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    cfg = load_config(det_config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    with torch.no_grad():  # scores that differ, so that the order of the boxes is settled
        model.roi_head.bbox_head.fc_cls.weight.normal_()
        model.rpn_head.rpn_cls.weight.normal_()
    meta = {'dataset_meta': {'classes': ('square', 'disk', 'triangle')}}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, tmp_path / 'epoch_1.pth')
    folded = fold_run(det_config, tmp_path / 'epoch_1.pth', tmp_path)
    image = coco_root / 'val2017' / '000000000002.jpg'
    before = predictions(det_config, tmp_path / 'epoch_1.pth', image)
    after = predictions(*folded, image)
    assert len(before[0])
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_interrupted(det_config: Path, tmp_path: Path) -> None:
    options = {'default_hooks.checkpoint.max_keep_ckpts': 2}
    train(det_config, tmp_path / 'whole', cfg_options=options)
    # what a run that is killed in its second epoch leaves behind
    half = tmp_path / 'half'
    half.mkdir()
    (half / 'epoch_1.pth').write_bytes((tmp_path / 'whole' / 'epoch_1.pth').read_bytes())
    (half / 'last_checkpoint').write_text(str(half / 'epoch_1.pth'))
    train(det_config, half, resume='auto')
    expected = weights(tmp_path / 'whole' / 'epoch_2.pth')
    for key, value in weights(half / 'epoch_2.pth').items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.slow
@pytest.mark.parametrize('with_cp', [False, True])
def test_two_processes(det_config: Path, tmp_path: Path, free_port: int, with_cp: bool) -> None:
    """Checkpointed blocks, shared atoms and DDP together; the ranks end with equal parameters."""
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2'),
            *('--master-port', str(free_port), str(Path(__file__).with_name('two_ranks.py'))),
            *(str(det_config), str(tmp_path / 'run'), str(with_cp)),
        ],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sums = [torch.load(tmp_path / 'run' / f'rank_{rank}.pth') for rank in range(2)]
    for key, value in sums[0].items():
        assert torch.equal(value, sums[1][key]), key
    assert re.search(r'coco/bbox_mAP', (tmp_path / 'run' / 'summary.json').read_text())


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.backbone.model_name=vit_tiny_massa_s4', 'vit_tiny_masa_s4'),
        ('model.backbone.out_indices=7', r'out_indices=7.*0 to 3'),
        ('model.roi_head.bbox_head.num_classes=80', r'(?s)3 classes.*bbox_head\.num_classes=3'),
        ('model.backbone.pad_windows=False', 'tile'),
        ('train_dataloader.dataset.ann_file=annotations/nowhere.json', 'nowhere.json'),
        ('model.backbone.windowsize=7', 'windowsize.*window_size'),
    ],
)
def test_mistakes(
    det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, option: str, message: str
) -> None:
    run = tmp_path / 'run'
    options = [option]
    if 'pad_windows' in option:
        options += ['model.backbone.window_size=3', 'model.backbone.global_attn_indexes=[]']
    arguments = ['train', str(det_config), '--work-dir', str(run), '--cfg-options', *options]
    assert main(arguments) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(run.glob('*.pth'))


def test_custom_imports_of_a_user_replace_ours(det_config: Path, tmp_path: Path) -> None:
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = '{det_config}'\ncustom_imports = dict(imports=['json'])\n")
    code = (
        'from masa_vit.training import load_config\n'
        f'cfg = load_config({str(mine)!r})\n'
        'from mmdet.registry import MODELS\n'
        'assert MODELS.get("MasaViT") and MODELS.get("MaskRCNN")\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)


def test_mmengine_finds_our_configs_after_import(tmp_path: Path) -> None:
    config = ROOT / 'configs' / 'det' / 'faster_rcnn_vit_masa_custom.py'
    code = (
        'import masa_vit.detection\n'
        'from mmengine.config import Config\n'
        f'assert Config.fromfile({str(config)!r}).model.type == "FasterRCNN"\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
