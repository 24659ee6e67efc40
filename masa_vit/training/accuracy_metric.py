"""Accuracy and likelihood of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from masa_vit.training.image_datasets import IGNORE_INDEX

__all__ = ['Accuracy']


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Top-k accuracy in percent and mean negative log-likelihood, exact in distributed evaluation too.

    Reports ``accuracy/top1``, ``accuracy/top5``, ..., ``accuracy/nll`` (in nats) and
    ``accuracy/num_samples``, the images counted: those that could not be read are not. A k that is
    not smaller than the number of classes is left out.

    Args:
        topk: which k.
        collect_device: where the ranks' results meet, ``'cpu'`` or ``'gpu'``.
        prefix: of the reported names.
    """

    def __init__(
        self,
        topk: int | Sequence[int] = (1, 5),
        collect_device: str = 'cpu',
        prefix: str = 'accuracy',
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise ValueError(f'topk expects positive integers such as (1, 5), got {topk!r}')

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Record per image the place (0: first) of the true class, -1: no image, and its -log p."""
        logits = torch.stack([sample['logits'] for sample in data_samples])  # (B, classes)
        targets = torch.as_tensor(data_batch['targets']).to(logits.device)  # (B,)
        known = targets != IGNORE_INDEX
        # `stable`: of equal logits the lower class comes first, so ties do not all count
        order = logits.argsort(dim=1, descending=True, stable=True)
        place = (order == targets.where(known, 0)[:, None]).int().argmax(dim=1)  # (B,)
        num_classes = logits.shape[1]
        nll = F.cross_entropy(logits.double(), targets.where(known, 0), reduction='none')  # (B,)
        # one entry an image: the ranks' lists are cut to the length of the dataset
        places = place.where(known, -1).tolist()
        self.results += [(p, x, num_classes) for p, x in zip(places, nll.tolist(), strict=True)]

    def compute_metrics(self, results: list[tuple[int, float, int]]) -> dict[str, Any]:
        """Count, over the whole dataset."""
        places = torch.tensor([place for place, _, _ in results if place >= 0])
        if not len(places):
            raise ValueError('accuracy: there is not one image to evaluate')
        num_classes = results[0][2]
        topk = [k for k in self.topk if k < num_classes] or [1]
        metrics: dict[str, Any] = {
            f'top{k}': 100.0 * (places < k).double().mean().item() for k in topk
        }
        metrics['nll'] = sum(x for place, x, _ in results if place >= 0) / len(places)
        metrics['num_samples'] = len(places)
        return metrics
