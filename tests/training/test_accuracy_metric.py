from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.registry import METRICS
from sklearn.metrics import top_k_accuracy_score

import masa_vit.training  # noqa: F401
from masa_vit.training.image_datasets import IGNORE_INDEX


def evaluate(logits: torch.Tensor, targets: torch.Tensor, batch: int = 7, **kwargs) -> dict:
    metric = METRICS.build(dict(type='Accuracy', **kwargs))
    for start in range(0, len(logits), batch):
        part = slice(start, start + batch)
        metric.process({'targets': targets[part]}, [{'logits': row} for row in logits[part]])
    return metric.evaluate(len(logits))


def data(size: int = 50, classes: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(size) % classes
    return torch.randn(size, classes, generator=generator), targets


def test_equals_sklearn() -> None:
    logits, targets = data()
    metrics = evaluate(logits, targets, topk=(1, 3, 5))
    for k in (1, 3, 5):
        expected = 100 * top_k_accuracy_score(targets.numpy(), logits.numpy(), k=k)
        assert metrics[f'accuracy/top{k}'] == pytest.approx(expected, abs=1e-9)
    assert metrics['accuracy/num_samples'] == 50
    nll = torch.nn.functional.cross_entropy(logits, targets)
    assert metrics['accuracy/nll'] == pytest.approx(nll.item(), rel=1e-5)


def test_constant_logits_are_no_success() -> None:
    targets = torch.arange(40) % 8
    metrics = evaluate(torch.zeros(40, 8), targets, topk=(1, 5))
    assert metrics['accuracy/top1'] == pytest.approx(100 / 8)
    assert metrics['accuracy/top5'] == pytest.approx(500 / 8)


def test_skipped_images_do_not_count() -> None:
    logits, targets = data()
    skipped = targets.clone()
    skipped[::3] = IGNORE_INDEX
    keep = skipped != IGNORE_INDEX
    assert evaluate(logits, skipped) == evaluate(logits[keep], targets[keep])
    with pytest.raises(ValueError, match='not one image'):
        evaluate(logits, torch.full_like(targets, IGNORE_INDEX))


def test_k_beyond_the_classes_is_left_out() -> None:
    logits, targets = data(classes=4)
    names = {'accuracy/top1', 'accuracy/nll', 'accuracy/num_samples'}
    assert set(evaluate(logits, targets)) == names


@pytest.mark.parametrize('topk', [0, (), (1, -1)])
def test_bad_topk(topk: object) -> None:
    with pytest.raises(ValueError, match='topk expects positive integers'):
        METRICS.build(dict(type='Accuracy', topk=topk))


def _rank(rank: int, port: int, folder: str) -> None:
    """Evaluate this rank's part of 49 images as mmengine's sampler deals them out, padded."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    logits, targets = data(49)
    index = torch.tensor([*range(49), 0])[rank::2]  # the last one of rank 1 is padding
    metric = METRICS.build(dict(type='Accuracy', topk=(1, 3)))
    for part in index.split(6):
        metric.process({'targets': targets[part]}, [{'logits': row} for row in logits[part]])
    metrics = metric.evaluate(49)
    np.save(Path(folder) / f'{rank}.npy', [metrics[k] for k in sorted(metrics)])
    torch.distributed.destroy_process_group()


def test_exact_over_two_processes(tmp_path: Path, free_port: int) -> None:
    mp.start_processes(_rank, (free_port, str(tmp_path)), nprocs=2, start_method='fork')
    expected = evaluate(*data(49), topk=(1, 3))
    for rank in range(2):
        found = np.load(tmp_path / f'{rank}.npy')
        assert np.array_equal(found, [expected[k] for k in sorted(expected)])
