from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import nn
from torch.distributions import Categorical, kl_divergence

from masa_vit.inspection import count_parameters
from masa_vit.training.optimizer_groups import BFloat16OptimWrapper

Make = Callable[..., dict]
DENSE = 'vit_tiny_patch16_224'


def batch(size: int = 8) -> dict:
    generator = torch.Generator().manual_seed(size)
    return {
        'inputs': torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator),
        'targets': torch.randint(0, 3, (size,), generator=generator),
    }


@pytest.fixture
def dense(tiny: Make) -> nn.Module:
    """The model that teaches."""
    model = timm.create_model(DENSE, num_classes=3, **tiny()['model_args']).eval()
    nn.init.normal_(model.head.weight)  # so that it has an opinion
    return model


@pytest.fixture
def distilled(tiny: Make, dense: nn.Module, tmp_path: Path) -> Make:
    """Config of a classifier that `dense` teaches."""
    path = tmp_path / 'teacher.pth'
    torch.save({'state_dict': dense.state_dict()}, path)
    args = tiny()['model_args']

    def config(**changes: Any) -> dict:
        teacher = dict(model_name=DENSE, model_args=args, init_from=str(path))
        teacher |= changes.pop('teacher', {})
        return tiny(**changes) | dict(type='DistilledClassifier', teacher=teacher)

    return config


def attention_outputs(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_hook(lambda m, args, out, i=index: found.update({i: out}))
    model(images)
    return [found[index] for index in range(len(found))]


def names(model: nn.Module) -> list[list[str]]:
    kinds = (model.named_parameters(), model.named_buffers(), model.named_modules())
    return [sorted(model.state_dict()), *([name for name, _ in kind] for kind in kinds)]


@pytest.mark.parametrize('mixup', [None, dict(mixup_alpha=0.8)])
@pytest.mark.parametrize(
    ('alpha', 'temperature', 'weight'), [(0.3, 2.5, 0.0), (1.0, 1.0, 0.7), (0.0, 1.0, 2.0)]
)
def test_loss_is_the_formula(
    distilled: Make,
    dense: nn.Module,
    alpha: float,
    temperature: float,
    weight: float,
    mixup: dict | None,
) -> None:
    cfg = distilled(alpha=alpha, temperature=temperature, feature_weight=weight, mixup=mixup)
    model = MODELS.build(cfg | dict(label_smoothing=0.1)).eval()
    images, targets = model.data_preprocessor(batch(7)).values()
    np.random.seed(0)
    out = model(images.clone(), targets, mode='loss')
    if mixup:
        np.random.seed(0)
        images, targets = model._mix(images, targets)
        cross_entropy = F.cross_entropy(model(images), targets)
        assert 'top1' not in out
    else:
        cross_entropy = F.cross_entropy(model(images), targets, label_smoothing=0.1)
        assert out['top1'] == 100 * (model(images).argmax(1) == targets).float().mean()
    student, teacher = (Categorical(logits=m(images) / temperature) for m in (model, dense))
    kl = temperature**2 * kl_divergence(teacher, student).mean()
    pairs = zip(
        attention_outputs(model.model, images), attention_outputs(dense, images), strict=True
    )
    attention = torch.stack([((s - t).norm() / t.norm()) ** 2 for s, t in pairs]).mean()
    expected = (1 - alpha) * cross_entropy + alpha * kl + weight * attention
    torch.testing.assert_close(out['loss'], expected)
    torch.testing.assert_close(out['cross_entropy'], cross_entropy)
    assert ('kl' in out, 'attention' in out) == (alpha > 0, weight > 0)
    if alpha:
        torch.testing.assert_close(out['kl'], kl)
        assert kl > 0.1
    if weight:
        torch.testing.assert_close(out['attention'], attention)
        assert attention > 0.1
    assert not any(value.requires_grad for name, value in out.items() if name != 'loss')


def test_nothing_to_learn_from_oneself(distilled: Make, dense: nn.Module) -> None:
    model = MODELS.build(distilled(model_name=DENSE, alpha=0.5, feature_weight=1.0))
    model.model.load_state_dict(dense.state_dict())
    out = model(**model.data_preprocessor(batch()), mode='loss')
    assert out['attention'] == 0
    assert out['kl'].abs() < 1e-6
    assert out['cross_entropy'] > 0


def test_the_teacher_is_no_part_of_the_student(
    tiny: Make, distilled: Make, dense: nn.Module
) -> None:
    torch.manual_seed(0)
    plain = MODELS.build(tiny())
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = MODELS.build(distilled(feature_weight=1.0))
    model.init_weights()
    assert torch.equal(torch.get_rng_state(), state), 'the teacher has drawn random numbers'
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    average = ExponentialMovingAverage(model)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=2e-3))
    losses = [model.train().train_step(batch(), optimizer)['loss'] for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(before[k], v) for k, v in model.state_dict().items())

    assert names(model) == names(plain)
    assert names(average.module) == names(plain)
    assert average.module.teacher is model.teacher, 'copies do not hold another one'
    assert count_parameters(model) == count_parameters(plain)
    teacher = model.teacher.state_dict()
    assert all(torch.equal(teacher[k], v) for k, v in dense.state_dict().items())
    assert not any(module.training for module in model.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_precision_is_the_students(distilled: Make) -> None:
    model = MODELS.build(distilled(alpha=0.9, feature_weight=1.0))
    other = copy.deepcopy(model)
    optimizers = [kind(torch.optim.SGD(m.parameters(), lr=0.1)) for kind, m in (
        (OptimWrapper, model), (BFloat16OptimWrapper, other)
    )]  # fmt: skip
    dtypes = set()
    other.teacher.blocks[0].attn.qkv.register_forward_hook(lambda m, a, out: dtypes.add(out.dtype))
    full = model.train_step(batch(), optimizers[0])
    assert dtypes == {torch.float32}
    mixed = other.train_step(batch(), optimizers[1])
    assert dtypes == {torch.float32, torch.bfloat16}
    assert mixed['loss'] != full['loss']
    torch.testing.assert_close(mixed['loss'], full['loss'], rtol=0.02, atol=0)
    assert {p.dtype for p in other.teacher.parameters()} == {torch.float32}

    data = model.double().data_preprocessor(batch())
    loss = model(data['inputs'].double(), data['targets'], mode='loss')['loss']
    assert dtypes == {torch.float32, torch.bfloat16, torch.float64}
    assert loss.isfinite()


def test_gradient_checkpointing_changes_nothing(distilled: Make) -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        cfg = distilled(feature_weight=3.0, grad_checkpointing=checkpointing)
        model = MODELS.build(cfg).double().train()
        data = model.data_preprocessor(batch())
        model(data['inputs'].double(), data['targets'], mode='loss')['loss'].backward()
        assert not any(block.attn._forward_hooks for block in model.model.blocks)
        grads.append([p.grad for p in model.parameters()])
    assert all(grad is not None for grad in grads[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


def test_accumulation_equals_a_big_batch(distilled: Make) -> None:
    model = MODELS.build(distilled()).double()
    other = copy.deepcopy(model)
    big = batch(8)
    big['inputs'] = model.data_preprocessor(big)['inputs'].double()
    whole = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    halves = OptimWrapper(torch.optim.SGD(other.parameters(), lr=0.1), accumulative_counts=2)
    halves.initialize_count_status(other, 0, 2)
    model.train_step(big, whole)
    for part in (slice(4), slice(4, 8)):
        other.train_step({key: value[part] for key, value in big.items()}, halves)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the loss is in float32


def test_a_batch_without_a_readable_image_teaches_nothing(distilled: Make) -> None:
    model = MODELS.build(distilled(feature_weight=1.0))
    data = model.data_preprocessor(batch() | {'targets': torch.full((8,), -100)}, training=True)
    loss = model(**data, mode='loss')['loss']
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_attention_alone_can_be_learnt_of_a_teacher_with_other_classes(
    distilled: Make, dense: nn.Module, tmp_path: Path
) -> None:
    other = {k: v for k, v in dense.state_dict().items() if 'head' not in k}
    other |= {'head.weight': torch.zeros(1000, 32), 'head.bias': torch.zeros(1000)}
    torch.save(other, tmp_path / 'other.pth')
    teacher = dict(init_from=str(tmp_path / 'other.pth'))
    model = MODELS.build(distilled(teacher=teacher, alpha=0.0, feature_weight=1.0))
    model.init_weights()
    assert model(**model.data_preprocessor(batch()), mode='loss')['attention'] > 0
    with pytest.raises(ValueError, match=r'(?s)teacher: .*other\.pth.*num_classes=3.*head\.weight'):
        MODELS.build(distilled(teacher=teacher)).init_weights()


def test_a_teacher_of_another_kind(distilled: Make, tmp_path: Path) -> None:
    resnet = timm.create_model('resnet10t', num_classes=3)
    torch.save(resnet.state_dict(), tmp_path / 'resnet.pth')
    teacher = dict(model_name='resnet10t', model_args={}, init_from=str(tmp_path / 'resnet.pth'))
    model = MODELS.build(distilled(teacher=teacher))
    statistics = model.teacher.bn1.running_mean.clone()
    assert model.train()(**model.data_preprocessor(batch()), mode='loss')['kl'] > 0
    assert torch.equal(model.teacher.bn1.running_mean, statistics)
    with pytest.raises(ValueError, match='the teacher is a ResNet without'):
        MODELS.build(distilled(teacher=teacher, feature_weight=1.0))


SHAPE = dict(img_size=16, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=1.0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(alpha=1.5), r'alpha expects a number in \[0, 1\], got 1.5'),
        (dict(temperature=0), 'temperature expects a number above 0, got 0'),
        (dict(feature_weight=-1.0), 'feature_weight expects 0 or more, got -1.0'),
        (dict(alpha=0.0), 'teaches nothing'),
        (dict(teacher=dict(init_from=None)), 'teacher needs init_from'),
        (dict(teacher=dict(weights='a.pth')), r"teacher has \['weights'\]; it takes model_name"),
        (
            dict(feature_weight=1.0, teacher=dict(model_args=SHAPE | dict(depth=2))),
            'the model has depth 4, the teacher 2',
        ),
        (
            dict(feature_weight=1.0, teacher=dict(model_args=SHAPE | dict(embed_dim=64))),
            'the model has embed_dim 32, the teacher 64',
        ),
        (
            dict(feature_weight=1.0, teacher=dict(model_args=SHAPE | dict(reg_tokens=4))),
            'the model has tokens 5, the teacher 9',
        ),
        (
            dict(feature_weight=1.0, teacher=dict(model_name='vit_tiny_patch17_224')),
            "teacher: unknown model_name 'vit_tiny_patch17_224'.*vit_tiny_patch16_224",
        ),
    ],
)
def test_bad_config(distilled: Make, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(distilled(**changes))


def test_evaluation_needs_no_teacher(distilled: Make) -> None:
    for name in (DENSE, 'local-dir:nowhere'):
        teacher = dict(model_name=name, init_from='nowhere.pth')
        model = MODELS.build(distilled(teacher=teacher, feature_weight=1.0)).eval()
        data = model.data_preprocessor(batch())
        assert len(model(**data, mode='predict')) == 8
        with pytest.raises(FileNotFoundError, match='nowhere'):
            model.init_weights()
