"""Training with a frozen teacher: distillation of logits and of attention outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from masa_vit.models import load_weights
from masa_vit.training.classifier import ImageClassifier, create_model

__all__ = ['DistilledClassifier']

_TEACHER_KEYS = ('model_name', 'model_args', 'init_from')


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """A classifier with a frozen teacher: its class probabilities, and its attention outputs.

    ``loss = (1 - alpha) * CE + alpha * T^2 * KL(teacher/T || student/T) + feature_weight * A``

    CE is the cross entropy with the targets, label smoothing and mixup included. KL is the divergence
    of the student's classes from the teacher's, both softened by the temperature T, on the images
    that the student sees, mixed ones too; T^2 keeps its gradients' size whatever T is (Hinton et al.,
    arXiv 1503.02531). A compares the outputs of the attention block by block: the mean squared
    difference, in units of the teacher's mean square, averaged over the blocks, so that blocks count
    alike.

    The teacher is not part of the student: it is in no state dict, checkpoint, average of weights
    (EMA), optimizer or count of parameters, and is not needed after training. It is built and loaded
    where training begins, runs in evaluation mode, without gradients, in the student's precision, and
    sees images normalised as the student's.

    Args:
        model_name: of the student; this and the others are those of :class:`ImageClassifier`.
        num_classes: see there.
        teacher: ``model_name``, ``model_args`` and ``init_from``, as of the classifier; the weights
            have to fill the teacher, its head too.
        model_args: see there.
        alpha: weight of the teacher's classes against the targets', in [0, 1].
        temperature: T, above 0.
        feature_weight: weight of A. Above 0, student and teacher must be vision transformers with
            as many blocks, as wide, over as many tokens.
        **kwargs: other arguments of :class:`ImageClassifier`.

    Raises:
        ValueError: for a number out of its range, an incomplete `teacher`, or one whose blocks are
            unlike the student's.
    """

    # Why not timm.task: its tasks register the teacher as a submodule (state dict, DDP), are training
    # separate loops, and compare pooled features only. The losses are torch's.

    def __init__(
        self,
        model_name: str,
        num_classes: int,
        teacher: Mapping[str, Any],
        model_args: dict | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
        feature_weight: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(model_name, num_classes, model_args, **kwargs)
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f'alpha expects a number in [0, 1], got {alpha!r}')
        if not temperature > 0.0:
            raise ValueError(f'temperature expects a number above 0, got {temperature!r}')
        if not feature_weight >= 0.0:
            raise ValueError(f'feature_weight expects 0 or more, got {feature_weight!r}')
        if not alpha and not feature_weight:
            raise ValueError(
                'the teacher teaches nothing: set alpha or feature_weight above 0, or use '
                "type='ImageClassifier'"
            )
        self.alpha = alpha
        self.temperature = temperature
        self.feature_weight = feature_weight
        # without alpha the teacher's classes do not matter, and may be others
        self._teacher = _Teacher(teacher, self.num_classes if alpha else 0)
        if feature_weight:
            # for evaluation the teacher's folder may be gone; training will miss it
            with contextlib.suppress(FileNotFoundError):
                _check_blocks(self.model, self._teacher.create('meta'))

    @property
    def teacher(self) -> nn.Module:
        """The teacher, built and loaded at the first use."""
        return self._teacher.load()

    def init_weights(self) -> None:
        """Load ``init_from``, and the teacher, so that a mistake shows before the first step."""
        super().init_weights()
        self._teacher.load()

    def loss(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """As the base class, with the loss of this one.

        Returns:
            ``loss``, its parts before they are weighted (``cross_entropy``; ``kl`` with its T^2, if
            alpha > 0; ``attention``, if feature_weight > 0), and ``top1``.
        """
        teacher = self._teacher.load(inputs)
        record = bool(self.feature_weight)
        with torch.no_grad(), _attention_outputs(teacher, record) as expected:
            teacher_logits = teacher(inputs).float()
        with _attention_outputs(self.model, record) as found:
            logits = self.model(inputs).float()
        out = self._rate(logits, targets)
        parts = {'cross_entropy': out['loss']}
        out['loss'] = (1.0 - self.alpha) * out['loss']
        if self.alpha:
            parts['kl'] = self.temperature**2 * F.kl_div(
                F.log_softmax(logits / self.temperature, dim=1),
                F.log_softmax(teacher_logits / self.temperature, dim=1),
                reduction='batchmean',
                log_target=True,
            )
            out['loss'] = out['loss'] + self.alpha * parts['kl']
        if self.feature_weight:
            parts['attention'] = _relative_error(found, expected)
            out['loss'] = out['loss'] + self.feature_weight * parts['attention']
        return out | {name: value.detach() for name, value in parts.items()}


class _Teacher:
    """A frozen model that is not a submodule of the student; copies of the student share it."""

    def __init__(self, cfg: Mapping[str, Any], num_classes: int):
        if unknown := set(cfg) - set(_TEACHER_KEYS):
            raise ValueError(f'teacher has {sorted(unknown)}; it takes {", ".join(_TEACHER_KEYS)}')
        if missing := [key for key in ('model_name', 'init_from') if not cfg.get(key)]:
            raise ValueError(
                f'teacher needs {" and ".join(missing)}: the trained model to learn from, as in '
                "dict(model_name='vit_base_patch16_224', init_from='dense.safetensors')"
            )
        self.cfg = dict(cfg)
        self.num_classes = num_classes
        self.model: Any = None

    def __deepcopy__(self, memo: dict) -> _Teacher:
        return self

    def create(self, device: str = 'cpu') -> Any:
        """The teacher with random weights, in evaluation mode."""
        args = dict(self.cfg.get('model_args') or {})
        # a run that is resumed builds it later: the student's random numbers must not depend on it
        with torch.random.fork_rng(devices=[]), torch.device(device):
            try:
                model = create_model(self.cfg['model_name'], self.num_classes, args)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f'teacher: {error}') from error
        return model.eval().requires_grad_(False)

    def load(self, like: Tensor | None = None) -> Any:
        """The teacher with its weights, on the device and in the dtype of a tensor, if given."""
        if self.model is None:
            model, source = self.create(), self.cfg['init_from']
            with torch.random.fork_rng(devices=[]):
                report = load_weights(model, source)
            if report.missing or report.unexpected or (report.dropped and self.num_classes):
                raise ValueError(
                    f'teacher: {source} is not a checkpoint of {self.cfg["model_name"]!r} with '
                    f'num_classes={self.num_classes} and these model_args:\n{report}'
                )
            print_log(f'teacher: weights from {report}', 'current')
            self.model = model
        if like is not None:
            weight = next(self.model.parameters())
            if (weight.device, weight.dtype) != (like.device, like.dtype):
                self.model.to(like)
        return self.model


@contextlib.contextmanager
def _attention_outputs(model: Any, record: bool) -> Iterator[list[Tensor]]:
    """Collect the attention output of each block inside the context, (B, N, C).

    The hooks are gone by the backward pass, when gradient checkpointing runs the blocks once more.
    """
    outputs: list[Tensor] = []
    hooks = [
        block.attn.register_forward_hook(lambda module, args, output: outputs.append(output))
        for block in (model.blocks if record else ())
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _relative_error(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Mean over the blocks of ``|student - teacher|^2 / |teacher|^2``."""
    errors = []
    for student, teacher in zip(found, expected, strict=True):
        energy = teacher.float().square().mean().clamp_min(1e-12)
        errors.append(F.mse_loss(student.float(), teacher.float()) / energy)
    return torch.stack(errors).mean()


def _check_blocks(student: Any, teacher: Any) -> None:
    sizes = [_sizes(student, 'the model'), _sizes(teacher, 'the teacher')]
    for name, of_student in sizes[0].items():
        if of_student != sizes[1][name]:
            raise ValueError(
                f'feature_weight compares the models block by block, but the model has {name} '
                f'{of_student}, the teacher {sizes[1][name]}: give a teacher of the same shape, or '
                'set feature_weight=0'
            )


def _sizes(model: Any, who: str) -> dict[str, int]:
    blocks = getattr(model, 'blocks', [])
    if not len(blocks) or not all(hasattr(block, 'attn') for block in blocks):
        raise ValueError(
            f'feature_weight needs vision transformers with attention in blocks[i].attn, and {who} is '
            f'a {type(model).__name__} without: set feature_weight=0'
        )
    return {
        'depth': len(blocks),
        'embed_dim': model.embed_dim,
        'tokens': model.patch_embed.num_patches + model.num_prefix_tokens,
    }
