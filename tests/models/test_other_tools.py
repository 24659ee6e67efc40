"""The tools that people use with timm models, used with shared ones; see docs/other_tools.md."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm.utils
import torch
from timm.models import reparameterize_model
from torch import nn
from torch.nn.utils import prune

import masa_vit
from masa_vit.layers import AtomBank, SharedLinear

TRUNK = ('patch_embed', 'blocks', 'norm')
COEFFICIENTS = [{'coefficients': 'direct'}, {'coefficients': 'mlp'}]


def by_module(model: nn.Module) -> None:
    for name in TRUNK:
        model.get_submodule(name).requires_grad_(False)
    model.cls_token.requires_grad = model.pos_embed.requires_grad = False


def by_parameters(model: nn.Module) -> None:
    for name in TRUNK:
        for param in model.get_submodule(name).parameters():
            param.requires_grad = False
    model.cls_token.requires_grad = model.pos_embed.requires_grad = False


def by_timm(model: nn.Module) -> None:
    timm.utils.freeze(model, [*TRUNK])
    model.cls_token.requires_grad = model.pos_embed.requires_grad = False


def all_but_the_head(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize('freeze', [by_module, by_parameters, by_timm, all_but_the_head])
@pytest.mark.parametrize('optimizer_first', [True, False])
@pytest.mark.parametrize('kwargs', COEFFICIENTS)
def test_features_of_a_frozen_trunk_stay(small, images, freeze, optimizer_first, kwargs):
    model = small(**kwargs)
    features, head = model.forward_features(images), model.head.weight.clone()
    if not optimizer_first:
        freeze(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    if optimizer_first:
        freeze(model)
    train(model, optimizer, images)
    assert torch.equal(model.forward_features(images), features)
    assert not torch.equal(model.head.weight, head)


def test_frozen_coefficients_train_their_atoms(small, images):
    model = small(coefficients='frozen', coef=torch.eye(2)[[0, 0, 1, 1]].tolist())
    atoms = model.banks['q'].atoms.clone()
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1), images)
    assert not torch.equal(model.banks['q'].atoms, atoms)


@pytest.mark.parametrize('kwargs', COEFFICIENTS)
def test_filters_by_module_and_name_find_what_is_shared(small, kwargs):
    model = small(**kwargs)
    of_blocks = {id(param) for param in model.blocks.parameters()}
    others = {id(param) for param in model.parameters()} - of_blocks
    shared = dict(small('vit_tiny_patch16_224').named_parameters())
    new = {name: param for name, param in model.named_parameters() if name not in shared}
    assert any('atoms' in name for name in new)
    assert all('attn' in name for name in new)
    assert all(id(param) not in others for param in new.values())
    if kwargs['coefficients'] == 'direct':
        assert {f'blocks.3.attn.coef.{p}' for p in 'qkvo'} <= set(new)


@pytest.mark.parametrize('kwargs', COEFFICIENTS)
def test_the_head_is_last(small, kwargs):
    model = small(**kwargs)
    assert [*model.children()][-1] is model.head
    assert [m for m in model.modules() if isinstance(m, nn.Linear)][-1] is model.head
    assert [name for name, _ in model.named_parameters()][-1] == 'head.bias'


@pytest.mark.parametrize('kwargs', [*COEFFICIENTS, {'projections': 'qvo', 'residual_rank': 1}])
def test_accelerate_offloads(small, images, tmp_path, kwargs):
    from accelerate import cpu_offload, disk_offload, dispatch_model

    model = small(**kwargs).eval()
    with torch.no_grad():
        expected = model(images)
        on_cpu = cpu_offload(copy.deepcopy(model), 'cpu')
        assert on_cpu.banks['q'].atoms.is_meta
        assert torch.equal(on_cpu(images), expected)
        assert torch.equal(disk_offload(copy.deepcopy(model), tmp_path, 'cpu')(images), expected)
        places = {name: 'cpu' for name, _ in model.named_children()}
        places |= {'cls_token': 'cpu', 'pos_embed': 'cpu', 'blocks': 'disk'}
        dispatched = dispatch_model(
            copy.deepcopy(model), places, 'cpu', offload_dir=tmp_path, force_hooks=True
        )
        assert torch.equal(dispatched(images), expected)


def test_a_bank_without_hooks_on_the_meta_device_is_an_error(small, images):
    model = small()
    model.banks['k'].to('meta')
    with pytest.raises(RuntimeError, match='on the meta device'):
        model(images)


def test_replaced_banks_and_coefficients_are_used(small, images):
    model, other = small(), small()
    before = model(images)
    model.banks['q'] = other.banks['q']
    model.blocks[0].attn.coef = other.blocks[0].attn.coef
    state = model.state_dict()
    assert state['blocks.attn_banks.q.atoms'].data_ptr() == other.banks['q'].atoms.data_ptr()
    assert not torch.equal(model(images), before)
    reloaded = small()
    reloaded.load_state_dict(state)
    assert torch.equal(reloaded(images), model(images))


def test_blocks_without_their_banks_are_refused(small, images):
    model = small()
    expected = model.forward_intermediates(images, indices=[1])[1][0]
    with pytest.raises(TypeError, match='has no banks: use a slice'):
        model.blocks = nn.Sequential(*[*model.blocks][:2])
    model.blocks = model.blocks[:2]
    assert torch.equal(model.forward_intermediates(images, indices=[1])[1][0], expected)
    assert 'blocks.attn_banks.q.atoms' in model.state_dict()


def test_pruned_atoms_train_and_travel(small, images):
    model = small()
    for bank in model.banks.values():
        prune.l1_unstructured(bank, 'atoms', 0.5)
    train(model, torch.optim.SGD(model.parameters(), lr=1e-2), images)
    expected = model(images)
    plain, pruned = small(), small()
    for bank in pruned.banks.values():
        prune.l1_unstructured(bank, 'atoms', 0.1)
    for other in (plain, pruned):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images), expected)
    assert (plain.banks['q'].atoms == 0).float().mean() == 0.5
    for bank in model.banks.values():
        prune.remove(bank, 'atoms')
    assert torch.equal(masa_vit.fold(model)(images), expected)


@pytest.mark.parametrize('kwargs', COEFFICIENTS)
def test_swapped_tensors(small, images, kwargs):
    model = small(**kwargs).eval()
    with torch.no_grad():
        expected = model(images)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        with torch.no_grad():
            assert torch.equal(model(images), expected)
        assert model.to(torch.float64)(images.double()).dtype == torch.float64
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize('kwargs', [*COEFFICIENTS, {'residual_rank': 2}])
def test_timm_reparameterizes(small, images, kwargs):
    model = small(**kwargs).eval()
    for name, param in model.named_parameters():
        if '.up_' in name:
            nn.init.normal_(param)
    fused = reparameterize_model(model)
    assert torch.equal(fused(images), model(images))
    assert not any(isinstance(m, (SharedLinear, AtomBank)) for m in fused.modules())


@pytest.mark.parametrize('kwargs', COEFFICIENTS)
def test_dynamic_quantization(small, images, kwargs):
    """The shared layers stay float, and nothing fails; folded, all linear layers are quantized."""
    model = small(**kwargs).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.ao is deprecated
        of = torch.ao.quantization.quantize_dynamic
        shared, folded = (of(m, {nn.Linear}, torch.qint8) for m in (model, masa_vit.fold(model)))
    assert isinstance(shared.blocks[0].attn.qkv, SharedLinear)
    assert not any(type(m) in (nn.Linear, SharedLinear) for m in folded.modules())
    assert torch.isfinite(shared(images)).all()
    torch.testing.assert_close(folded(images), model(images), atol=0.05, rtol=0)


def test_lora_on_the_folded_model(small, images):
    from peft import LoraConfig, get_peft_model

    model = small()
    config = LoraConfig(r=2, target_modules=['qkv', 'attn.proj'], init_lora_weights=False)
    with pytest.raises(ValueError, match=r'SharedLinear.* is not supported'):
        get_peft_model(copy.deepcopy(model), config)
    tuned = get_peft_model(masa_vit.fold(model), config).eval()
    expected = tuned(images)
    assert not torch.allclose(expected, model(images))
    torch.testing.assert_close(tuned.merge_and_unload()(images), expected, rtol=1e-4, atol=1e-5)


def test_lora_on_shared_layers(small, images):
    """The class shown in docs/other_tools.md."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners import lora

    class LoraSharedLinear(lora.Linear):
        def merge(self, safe_merge=False, adapter_names=None):
            raise NotImplementedError('merge into the folded model: the weight is composed')

    model = small()
    config = LoraConfig(r=2, target_modules=['qkv', 'attn.proj'], init_lora_weights=False)
    config._register_custom_module({SharedLinear: LoraSharedLinear})
    tuned = get_peft_model(copy.deepcopy(model), config)
    assert not torch.allclose(tuned(images), model(images))
    tuned(images).sum().backward()
    trained = {name for name, param in tuned.named_parameters() if param.grad is not None}
    assert trained
    assert all('lora_' in name for name in trained)
    with pytest.raises(NotImplementedError, match='merge into the folded model'):
        tuned.merge_and_unload()


def test_modules_to_save(small, images):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=['fc1'], modules_to_save=['head', 'attn_banks.q'])
    tuned = get_peft_model(small(), config)
    before = tuned(images)
    atoms = [p for n, p in tuned.named_parameters() if 'atoms' in n and p.requires_grad]
    assert len(atoms) == 1
    with torch.no_grad():
        atoms[0].mul_(2)
    assert not torch.equal(tuned(images), before)
    tuned.load_state_dict(tuned.state_dict())
