from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file
from torch import nn

import masa_vit
from masa_vit.training.image_datasets import IGNORE_INDEX

Tiny = Callable[..., dict]


def batch(size: int = 8) -> dict:
    generator = torch.Generator().manual_seed(size)
    return {
        'inputs': torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator),
        'targets': torch.randint(0, 3, (size,), generator=generator),
    }


@pytest.mark.parametrize('name', ['vit_tiny_masa_s2', 'vit_tiny_patch16_224', 'resnet18'])
def test_modes(tiny: Tiny, name: str) -> None:
    cfg = tiny(model_name=name)
    if name == 'resnet18':
        cfg['model_args'] = {}
    model = MODELS.build(cfg).eval()
    data = model.data_preprocessor(batch())
    logits = model(**data)
    assert logits.shape == (8, 3)
    assert torch.equal(logits, model.model(data['inputs']))
    out = model(**data, mode='loss')
    assert out['loss'].item() == pytest.approx(F.cross_entropy(logits, data['targets']).item())
    assert out['top1'] == 100 * (logits.argmax(1) == data['targets']).float().mean()
    predictions = model(**data, mode='predict')
    assert torch.equal(torch.stack([p['logits'] for p in predictions]), logits)
    with pytest.raises(ValueError, match=r"mode expects .* got 'train'"):
        model(**data, mode='train')
    with pytest.raises(ValueError, match='needs targets'):
        model(data['inputs'], mode='loss')


def test_label_smoothing(tiny: Tiny) -> None:
    model = MODELS.build(tiny(label_smoothing=0.2)).eval()
    data = model.data_preprocessor(batch())
    soft = F.one_hot(data['targets'], 3) * 0.8 + 0.2 / 3
    expected = -(soft * model(**data).log_softmax(1)).sum(1).mean()
    assert model(**data, mode='loss')['loss'].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('size', [8, 7, 1])
@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
def test_mixup_takes_every_batch_size(tiny: Tiny, size: int, mode: str) -> None:
    mixup = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode)
    model = MODELS.build(tiny(mixup=mixup, label_smoothing=0.1))
    data = model.data_preprocessor(batch(size))
    np.random.seed(0)
    images, soft = model._mix(data['inputs'].clone(), data['targets'])
    assert torch.allclose(soft.sum(1), torch.ones(size), atol=1e-6)
    if size > 1:
        assert not torch.equal(images[:6], data['inputs'][:6])
    if size % 2:
        assert torch.equal(images[-1], data['inputs'][-1])
        last = F.one_hot(data['targets'][-1], 3) * 0.9 + 0.1 / 3
        assert torch.allclose(soft[-1], last)
    np.random.seed(0)
    loss = model(data['inputs'].clone(), data['targets'], mode='loss')
    assert set(loss) == {'loss'}
    expected = -(soft * model(images).log_softmax(1)).sum(1).mean()
    assert loss['loss'].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('mixup', [None, dict(mixup_alpha=0.8)])
def test_a_batch_without_a_readable_image_teaches_nothing(tiny: Tiny, mixup: dict | None) -> None:
    model = MODELS.build(tiny(mixup=mixup))
    optimizer = OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), clip_grad=dict(max_norm=1.0)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    unreadable = batch() | {'targets': torch.full((8,), IGNORE_INDEX)}
    assert model.train_step(unreadable, optimizer)['loss'] == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.train_step(batch(), optimizer)['loss'] > 0
    data = model.data_preprocessor(unreadable, training=True)
    model(**data, mode='loss')['loss'].backward()
    # every parameter takes part, which DistributedDataParallel asks for
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_trains(tiny: Tiny) -> None:
    model = MODELS.build(tiny())
    optimizer = OptimWrapper(
        torch.optim.AdamW(model.parameters(), lr=2e-3), clip_grad=dict(max_norm=1.0)
    )
    losses = [model.train_step(batch(), optimizer)['loss'].item() for _ in range(25)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize('checkpointing', [False, True])
def test_accumulation_equals_a_big_batch(tiny: Tiny, checkpointing: bool) -> None:
    model = MODELS.build(tiny(grad_checkpointing=checkpointing)).double()
    other = copy.deepcopy(model)
    big = model.data_preprocessor(batch(8))
    big['inputs'] = big['inputs'].double()
    parts = [{key: value[i : i + 4] for key, value in big.items()} for i in (0, 4)]
    whole = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    halves = OptimWrapper(torch.optim.SGD(other.parameters(), lr=0.1), accumulative_counts=2)
    halves.initialize_count_status(other, 0, 2)
    start = [p.detach().clone() for p in model.parameters()]
    model.train_step(big, whole)
    for part in parts:
        other.train_step(part, halves)
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the loss is in float32


@pytest.mark.parametrize('coefficients', ['direct', 'mlp'])
def test_ema_averages_atoms_and_coefficients(tiny: Tiny, coefficients: str) -> None:
    model = MODELS.build(tiny(model_args=dict(coefficients=coefficients)))
    ema = ExponentialMovingAverage(model, momentum=0.25)
    ema.update_parameters(model)  # the first update copies
    start = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5))
    model.train_step(batch(), optimizer)
    ema.update_parameters(model)
    averaged = ema.module.state_dict()
    assert set(averaged) == set(start)
    assert sum('atoms' in key for key in averaged) == 4
    for key, value in model.state_dict().items():
        torch.testing.assert_close(averaged[key], 0.75 * start[key] + 0.25 * value)
    # the average computes with its own atoms, not with the trained model's
    images = model.data_preprocessor(batch())['inputs']
    fresh = MODELS.build(tiny(model_args=dict(coefficients=coefficients)))
    fresh.load_state_dict(averaged)
    torch.testing.assert_close(ema.module.eval()(images), fresh.eval()(images))


def test_runner_does_not_initialise_the_timm_model_again(tiny: Tiny) -> None:
    model = MODELS.build(tiny())
    nn.init.ones_(model.model.head.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_fine_tuning_at_another_size_and_other_classes(
    tiny: Tiny, tmp_path: Path, suffix: str
) -> None:
    source = MODELS.build(tiny())
    path = tmp_path / f'weights{suffix}'
    if suffix == '.pth':  # as a run writes it
        torch.save({'state_dict': source.state_dict(), 'meta': {}}, path)
    else:
        save_file(source.model.state_dict(), path)
    cfg = tiny(init_from=str(path), num_classes=7, model_args=dict(img_size=32))
    model = MODELS.build(cfg)
    model.init_weights()
    for bank, own in zip(
        source.model.banks.parameters(), model.model.banks.parameters(), strict=True
    ):
        assert torch.equal(bank, own)
    assert model.model.head.weight.shape == (7, 32)
    assert model.model.pos_embed.shape == (1, 17, 32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_missing_initial_weights(tiny: Tiny) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        MODELS.build(tiny(init_from='nowhere.pth')).init_weights()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model_name='vit_tiny_mesa_s4'), 'unknown model_name.*vit_tiny_masa_s4'),
        (dict(model_args=dict(embed_dims=3)), "takes no 'embed_dims'.*embed_dim"),
        (dict(model_args=dict(num_heads=5)), 'vit_tiny_masa_s2.*num_heads.*'),
        (dict(model_args=dict(num_classes=5)), 'model_args has num_classes'),
        (dict(model_args=dict(pretrained=True)), 'init_from'),
        (dict(num_classes=0), 'num_classes expects a positive integer, got 0'),
        (dict(label_smoothing=1.0), 'label_smoothing expects'),
        (dict(mixup=dict(alpha=0.8)), 'mixup_alpha, cutmix_alpha'),
        (dict(mixup=dict(mixup_alpha=0.0)), 'mixes nothing'),
        (dict(mixup=dict(mixup_alpha=1.0, label_smoothing=0.1)), 'beside mixup'),
        (dict(model_args=dict(num_atoms=9)), '9'),
    ],
)
def test_bad_config(tiny: Tiny, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(tiny(**changes))


def test_local_dir_names_are_timms_to_resolve(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny()['model_args']
    model = timm.create_model('vit_tiny_patch16_224', num_classes=3, **args)
    timm.models.save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    built = MODELS.build(tiny(model_name=f'local-dir:{tmp_path}', model_args={}))
    assert {k: v.shape for k, v in built.model.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.fixture
def compressed(tiny: Tiny, tmp_path: Path) -> Path:
    """The folder of a compressed model."""
    dense = timm.create_model('vit_tiny_patch16_224', num_classes=3, **tiny()['model_args'])
    folder = tmp_path / 'compressed'
    timm.models.save_for_hf(masa_vit.compress(dense, num_atoms=2), folder, safe_serialization=True)
    return folder


@pytest.mark.parametrize('init_from', ['{}/model.safetensors', '{}', 'local-dir:{}'])
def test_fine_tuning_a_compressed_model(compressed: Path, init_from: str) -> None:
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            model_name=f'local-dir:{compressed}',
            model_args=dict(drop_path_rate=0.1),
            num_classes=3,
            init_from=init_from.format(compressed),
        )
    )
    model.init_weights()
    torch.testing.assert_close(
        model.model.state_dict(), load_file(compressed / 'model.safetensors'), rtol=0, atol=0
    )
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.train_step(batch(), optimizer)['loss'].isfinite()
    other = MODELS.build(
        dict(
            type='ImageClassifier',
            model_name=f'local-dir:{compressed}',
            model_args=dict(img_size=32),
            num_classes=7,
            init_from=str(compressed),
        )
    )
    other.init_weights()
    assert other(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    model.init_weights()
    assert torch.equal(other.model.blocks[0].attn.coef.q, model.model.blocks[0].attn.coef.q)


def test_missing_folder_of_a_compressed_model(compressed: Path) -> None:
    cfg = dict(type='ImageClassifier', num_classes=3)
    with pytest.raises(FileNotFoundError, match=r'nowhere.*`masa-vit compress` writes'):
        MODELS.build(dict(cfg, model_name='local-dir:nowhere'))
    (compressed / 'model.safetensors').unlink()
    model = MODELS.build(dict(cfg, model_name=f'local-dir:{compressed}', init_from=str(compressed)))
    with pytest.raises(FileNotFoundError, match=r'none of model\.safetensors.*compress`'):
        model.init_weights()


def test_penalties_are_terms_of_the_loss(tiny: Tiny) -> None:
    cfg = tiny(model_name='vit_tiny_masa_s2')
    torch.manual_seed(0)
    model = MODELS.build({**cfg, 'penalties': {'coefficient_l1': 0.5, 'atom_correlation': 2.0}})
    data = model.data_preprocessor(batch())
    out = model(**data, mode='loss')
    rows = torch.cat([r for b in model.model.blocks for r in b.attn.coef.values().values()])
    torch.testing.assert_close(out['loss_coefficient_l1'], 0.5 * rows.abs().mean())
    total, _ = model.parse_losses(out)
    terms = out['loss'] + out['loss_coefficient_l1'] + out['loss_atom_correlation']
    torch.testing.assert_close(total, terms)
    with pytest.raises(ValueError, match=r"penalties has \['l2'\], expected coefficient_l1"):
        MODELS.build({**cfg, 'penalties': {'l2': 1.0}})
