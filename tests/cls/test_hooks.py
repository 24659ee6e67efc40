from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.runner import Runner

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
    runner: Callable[..., Runner], image_root: Path, kept: str, capfd: pytest.CaptureFixture
) -> None:
    bad = next((image_root / kept).rglob('*.png'))
    bad.write_bytes(bad.read_bytes()[:100])
    run = runner(on_error='skip')
    warnings: list[str] = []
    run.logger.log = lambda level, text: warnings.append(text)  # type: ignore[method-assign]
    run.train()
    told = [text for text in warnings if 'could not be read' in text]
    assert len(told) == 2, 'one line an epoch'
    assert all(text.startswith(f'{kept}: 1 images') for text in told)
    expected = 11 if kept == 'val' else 12
    assert run.message_hub.get_scalar('val/accuracy/num_samples').current() == expected
