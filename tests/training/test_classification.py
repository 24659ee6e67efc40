from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from masa_vit.training.image_datasets import IGNORE_INDEX

Tiny = Callable[..., dict]


def loader(root: Path, split: str, **kwargs) -> dict:
    return dict(
        batch_size=6,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='ImageFolder',
            data_root=str(root),
            split=split,
            pipeline=[
                dict(type='Albumentations', transforms=[dict(type='Resize', height=16, width=16)])
            ],
            **kwargs,
        ),
    )


@pytest.fixture
def runner(tiny: Tiny, image_root: Path, tmp_path: Path) -> Callable[..., Runner]:
    def build(model: dict | None = None, **kwargs) -> Runner:
        return Runner(
            model=model or tiny(),
            work_dir=str(tmp_path / 'run'),
            experiment_name=uuid.uuid4().hex,  # mmengine keeps loggers by name
            train_dataloader=loader(image_root, 'train', **kwargs),
            val_dataloader=loader(image_root, 'val', **kwargs),
            val_evaluator=dict(type='Accuracy'),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            custom_hooks=[dict(type='NumClassesCheckHook'), dict(type='SkippedImagesHook')],
            default_scope='mmengine',
            log_level='WARNING',
        )

    return build


def test_fitting_classes_train(runner: Callable[..., Runner], image_root: Path) -> None:
    run = runner()
    run.train()
    assert run.message_hub.get_scalar('val/accuracy/num_samples').current() == 12
    assert run.train_dataloader.dataset.metainfo['classes'] == ['cat', 'dog', 'emu']


def test_head_of_another_size(runner: Callable[..., Runner], tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r'num_classes=5, the training data has 3 classes \(cat'):
        runner(tiny(num_classes=5)).train()
    with pytest.raises(ValueError, match=r'the validation data has 3 .*\n.*num_classes to 3'):
        runner(tiny(num_classes=5)).val()


def test_other_classes_in_validation(runner: Callable[..., Runner], image_root: Path) -> None:
    (image_root / 'val' / 'emu').rename(image_root / 'val' / 'ape')
    with pytest.raises(ValueError, match='only in training: emu; only in validation: ape'):
        runner().train()


@pytest.mark.parametrize('kept', ['train', 'val'])
def test_skipped_images_are_counted(
    runner: Callable[..., Runner], image_root: Path, kept: str
) -> None:
    bad = next((image_root / kept).rglob('*.png'))
    bad.write_bytes(bad.read_bytes()[:100])
    run = runner(on_error='skip')
    run.train()
    log = next((image_root.parent / 'run').glob('*/*.log')).read_text()
    assert log.count(f'skipped: cannot read the image {bad}') == 1
    for iteration in (4, 8):  # one line an epoch, of 24 images in batches of 6
        line = (
            f'{kept}: 1 images, on all ranks together, could not be read and were skipped in the '
        )
        assert log.count(f'{line}epoch up to iteration {iteration};') == 1
    assert log.count('were skipped') == 2
    expected = 11 if kept == 'val' else 12
    assert run.message_hub.get_scalar('val/accuracy/num_samples').current() == expected


def test_validation_within_an_epoch_does_not_reset_the_count() -> None:
    """As when training goes by iterations."""
    told: list[str] = []
    log = SimpleNamespace(log=lambda level, text: told.append(text))
    run = SimpleNamespace(logger=log, iter=7)
    hook = HOOKS.build(dict(type='SkippedImagesHook'))
    batch = {'targets': torch.tensor([0, IGNORE_INDEX])}
    hook.before_train_epoch(run)
    hook.after_train_iter(run, 0, batch)
    hook.before_val_epoch(run)
    hook.after_val_iter(run, 0, batch)
    hook.after_val_epoch(run)
    hook.after_train_iter(run, 1, batch)
    hook.after_train_epoch(run)
    assert [text.partition(' images')[0] for text in told] == ['val: 1', 'train: 2']
