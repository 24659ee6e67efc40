"""The shipped config of distillation, from compressing to a resumed run and its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

import masa_vit
from masa_vit.training import load_config, train
from masa_vit.training import test as evaluate


def test_learns_resumes_and_is_evaluated_without_the_teacher(
    image_root: Path, tmp_path: Path
) -> None:
    args = dict(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=1.0)
    dense = timm.create_model('vit_tiny_patch16_224', num_classes=3, **args)
    compressed = masa_vit.compress(dense, 2)
    folder, teacher = tmp_path / 'compressed', tmp_path / 'dense.pth'
    timm.models.save_for_hf(compressed, folder, safe_serialization=True)
    torch.save(dense.state_dict(), teacher)
    resize = dict(
        type='Albumentations', transforms=[dict(type='Resize', height=32, width=32, p=1.0)]
    )
    options: dict[str, Any] = {
        'model.model_name': f'local-dir:{folder}',
        'model.init_from': str(folder),
        'model.num_classes': 3,
        'model.teacher.model_args': args,
        'model.teacher.init_from': str(teacher),
        'model.feature_weight': 0.5,
        'model.mixup': dict(mixup_alpha=0.8),
        'model.grad_checkpointing': True,
        'train_cfg.max_epochs': 2,
        'optim_wrapper.accumulative_counts': 2,
        # less to write, which takes most of the time
        'default_hooks.checkpoint.max_keep_ckpts': 2,
        'default_hooks.checkpoint.save_best': None,
        'default_hooks.logger.interval': 1,
        'visualizer.vis_backends': [dict(type='LocalVisBackend')],
        'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
        'val_dataloader.dataset.pipeline': [resize],
        'train_dataloader.batch_size': 5,
    }
    for loader in ('train_dataloader', 'val_dataloader'):
        options |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
        options[f'{loader}.dataset.data_root'] = str(image_root)
    cfg = load_config('masa_vit::cls/finetune_compressed_distill_cifar10.py', options)
    summary = train(cfg, tmp_path / 'whole')
    train(cfg, tmp_path / 'resumed', resume=tmp_path / 'whole' / 'epoch_1.pth')

    whole, resumed = (torch.load(tmp_path / d / 'epoch_2.pth') for d in ('whole', 'resumed'))
    student = {f'model.{key}' for key in compressed.state_dict()}
    assert set(whole['state_dict']) == student
    assert {key.removeprefix('module.') for key in whole['ema_state_dict']} == {*student, 'steps'}
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    assert str(whole['optimizer']) == str(resumed['optimizer'])
    assert summary['parameters']['total'] == sum(v.numel() for v in whole['state_dict'].values())
    log = Path(summary['log']).read_text()
    assert all(f' {part}: ' in log for part in ('loss', 'cross_entropy', 'kl', 'attention'))

    teacher.unlink()
    metrics = evaluate(cfg, tmp_path / 'whole' / 'epoch_2.pth', tmp_path / 'whole')
    assert metrics['accuracy/top1'] == summary['metrics']['accuracy/top1']['last']
