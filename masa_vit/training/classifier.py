"""Any timm model as a classifier that mmengine's Runner trains."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn

from masa_vit.layers.regularization import atom_correlation, coefficient_l1
from masa_vit.models import create_timm_model

__all__ = ['ImageClassifier', 'create_model']

_PENALTIES = {'coefficient_l1': coefficient_l1, 'atom_correlation': atom_correlation}

"""How timm marks a model's name as a folder."""


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A timm model with the losses and predictions of classification.

    A configuration of a MASA model and one of its dense baseline differ in ``model_name`` only.

    Args:
        model_name: any timm model name, ours or others; 'local-dir:FOLDER' for the model whose
            folder `masa-vit compress` (or `timm.models.save_for_hf`) wrote.
        num_classes: size of the head.
        model_args: further arguments of ``timm.create_model``: ``img_size``, ``embed_dim``,
            ``drop_path_rate``, ``num_atoms``...
        label_smoothing: in [0, 1).
        mixup: arguments of ``timm.data.Mixup``: ``mixup_alpha``, ``cutmix_alpha``, ``prob``...
        init_from: weights to start training from (fine-tuning): the path of a checkpoint or of a
            folder as above, or a timm model's name for that model's pretrained weights.
        penalties: weights of terms added to the loss: ``coefficient_l1`` (mean absolute coefficient),
            ``atom_correlation`` (mean squared cosine between the atoms of a dictionary).
        grad_checkpointing: recompute activations in the backward pass: less memory, more time.
        data_preprocessor: default: :class:`ImagePreprocessor` with ImageNet's mean and std.
    """

    def __init__(
        self,
        model_name: str,
        num_classes: int,
        model_args: dict | None = None,
        label_smoothing: float = 0.0,
        mixup: dict | None = None,
        init_from: str | None = None,
        grad_checkpointing: bool = False,
        data_preprocessor: dict | nn.Module | None = None,
        penalties: dict[str, float] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor or {'type': 'ImagePreprocessor'})
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f'num_classes expects a positive integer, got {num_classes!r}')
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f'label_smoothing expects a number in [0, 1), got {label_smoothing}')
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.init_from = init_from
        self.model = create_model(model_name, num_classes, dict(model_args or {}))
        self.mixup = _create_mixup(mixup, label_smoothing, num_classes) if mixup else None
        self.penalties = dict(penalties or {})
        if unknown := set(self.penalties) - set(_PENALTIES):
            raise ValueError(f'penalties has {sorted(unknown)}, expected {", ".join(_PENALTIES)}')
        if grad_checkpointing:
            self.model.set_grad_checkpointing()

    def init_weights(self) -> None:
        """Load ``init_from``; called once by the Runner before training.

        timm has initialised the model at creation. The base class would call ``init_weights`` of
        the timm model again, so it is not called here.
        """
        if self.init_from:
            from masa_vit.models import load_weights

            report = load_weights(self.model, self.init_from)
            level = logging.WARNING if report.missing or report.unexpected else logging.INFO
            print_log(f'initial weights from {self.init_from}:\n{report}', 'current', level)

    def forward(
        self, inputs: Tensor, targets: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Classify images (B, 3, H, W), with class indices ``targets`` (B,) in mode ``'loss'``.

        Returns:
            by ``mode``: ``'tensor'``: logits (B, classes); ``'loss'``: ``loss``, and ``top1`` of
            the batch in percent where its images are not mixed; ``'predict'``: one
            ``dict(logits=(classes,))`` in float32 per image. For empty targets, (0,), of a batch
            whose images could not be read, the loss and its gradients are zero.
        """
        if mode == 'tensor':
            return self.model(inputs)
        if mode == 'predict':
            return [{'logits': logits} for logits in self.model(inputs).float()]
        if mode != 'loss':
            raise ValueError(f"mode expects 'tensor', 'loss' or 'predict', got {mode!r}")
        if targets is None:
            raise ValueError("mode='loss' needs targets")
        if not len(targets):
            return {'loss': self.model(inputs).float().sum() * 0.0}
        if self.mixup is not None:
            inputs, targets = self._mix(inputs, targets)
        return {**self.loss(inputs, targets), **self._penalize()}

    def _penalize(self) -> dict[str, Tensor]:
        # mmengine adds up all entries with 'loss' in their name
        return {
            f'loss_{name}': weight * _PENALTIES[name](self.model)
            for name, weight in self.penalties.items()
        }

    def loss(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the losses of mode ``'loss'`` for a batch that is not empty.

        Args:
            inputs: (B, 3, H, W).
            targets: class indices (B,) or, of mixed images, probabilities (B, classes).
        """
        return self._rate(self.model(inputs).float(), targets)

    def _rate(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if targets.is_floating_point():  # mixed, and smoothed in mixing
            return {'loss': F.cross_entropy(logits, targets)}
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        top1 = 100.0 * (logits.detach().argmax(dim=1) == targets).float().mean()
        return {'loss': loss, 'top1': top1}

    def _mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the images in place and return them with soft targets (B, classes).

        timm's Mixup takes even batches only: the last image of an odd one stays as it is.
        """
        assert self.mixup is not None
        even = len(inputs) // 2 * 2
        mixed, soft = self.mixup(inputs[:even], targets[:even])
        if even < len(inputs):
            mixed = torch.cat([mixed, inputs[even:]])
            last = mixup_target(targets[even:], self.num_classes, 1.0, self.label_smoothing)
            soft = torch.cat([soft, last])
        return mixed, soft


def create_model(name: str, num_classes: int, args: dict[str, Any]) -> Any:
    """Create the timm model of a config.

    Raises:
        FileNotFoundError: if `name` is 'local-dir:FOLDER', and there is no model in the folder.
        ValueError: for an unknown name, or an argument that does not belong there.
    """
    if 'num_classes' in args:
        raise ValueError('model_args has num_classes: set num_classes beside model_args')
    return create_timm_model(name, args, num_classes=num_classes)


def _create_mixup(args: dict, label_smoothing: float, num_classes: int) -> Mixup:
    if taken := {'label_smoothing', 'num_classes'} & set(args):
        raise ValueError(f'mixup has {sorted(taken)}; set it beside mixup, once for the model')
    try:
        mixup = Mixup(**args, label_smoothing=label_smoothing, num_classes=num_classes)
    except TypeError as error:
        known = ', '.join(inspect.signature(Mixup).parameters)
        raise ValueError(f'mixup: {error}; timm.data.Mixup takes {known}') from error
    if mixup.mixup_alpha <= 0 and mixup.cutmix_alpha <= 0:
        raise ValueError('mixup mixes nothing: set mixup_alpha or cutmix_alpha above 0')
    return mixup
