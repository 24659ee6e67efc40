"""What a timm user may do with a timm model, done to ours: every choice of sharing, small shapes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from timm.utils import ModelEmaV3
from torch import nn
from torch.func import functional_call, grad

VARIANTS = {
    'direct': {},
    'mlp': {'coefficients': 'mlp', 'coef_embed_dim': 8, 'coef_hidden_dim': 8},
    'frozen': {'coefficients': 'frozen', 'coef': torch.eye(2)[[0, 0, 1, 1]].tolist()},
    'qkv': {'projections': 'qkv'},
    'k_dense': {'projections': 'qvo'},
    'common': {'dictionaries': ['qkv', 'o']},
}
"""Name -> arguments of `create_model` on top of those of conftest's `SMALL`."""


@pytest.fixture(params=VARIANTS)
def model(request, small) -> nn.Module:
    return small(**VARIANTS[request.param])


def dense_baseline(model: nn.Module, small) -> nn.Module:
    """timm's model with the weights that `model` composes."""
    dense = small('vit_tiny_patch16_224')
    state = {k: v for k, v in model.state_dict().items() if k in dense.state_dict()}
    for index, block in enumerate(model.blocks):
        for path in ('attn.qkv', 'attn.proj'):
            state[f'blocks.{index}.{path}.weight'] = block.get_submodule(path).weight
    dense.load_state_dict(state)
    return dense


def test_forward_and_gradients_are_those_of_the_dense_model(model, small, images):
    dense = dense_baseline(model, small)
    out = model(images)
    torch.testing.assert_close(out, dense(images), atol=1e-6, rtol=1e-5)
    out.square().sum().backward()
    dense(images).square().sum().backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        if name in dict(dense.named_parameters()):
            torch.testing.assert_close(param.grad, dense.get_parameter(name).grad)
    # chain rule, by hand: dL/dD_s = sum_l c_ls dL/dW_l
    names = model.blocks[0].attn.qkv.bank_of
    grads = {n: [] for n in 'qkv'}
    for block in dense.blocks:
        for n, part in zip('qkv', block.attn.qkv.weight.grad.chunk(3), strict=True):
            grads[n].append(part)
    for key, bank in model.banks.items():
        if key == 'o':
            continue
        expected = sum(
            torch.einsum('s,ij->sij', block.attn.coef.values()[n], part)
            for n in key
            if n in names
            for block, part in zip(model.blocks, grads[n], strict=True)
        )
        torch.testing.assert_close(bank.atoms.grad, expected, atol=1e-5, rtol=1e-4)


def test_forward_parts(model, images):
    features = model.forward_features(images)
    assert features.shape == (2, 17, 32)
    assert model.forward_head(features, pre_logits=True).shape == (2, 32)
    assert torch.equal(model.forward_head(features), model(images))
    model.reset_classifier(0)
    assert model(images).shape == (2, 32)
    model.reset_classifier(0, '')
    assert model(images).shape == (2, 17, 32)
    model.reset_classifier(7, 'token')
    assert model.get_classifier().out_features == 7
    assert model(images).shape == (2, 7)


def test_intermediates(model, images):
    final, maps = model.forward_intermediates(images, indices=[1, 3], norm=True)
    assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 2
    torch.testing.assert_close(final, model.forward_features(images))
    (tokens,) = model.get_intermediate_layers(images, n=1, norm=True)
    torch.testing.assert_close(tokens, final[:, 1:])


def test_pruned_model_keeps_no_dead_rows(small, images):
    model = small()
    expected = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    kept = model.prune_intermediate_layers([1])
    assert kept == [1]
    assert not any(key.startswith(('blocks.2', 'blocks.3')) for key in model.state_dict())
    got = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    assert torch.equal(got, expected)


def test_features_only(small, images):
    features = small(features_only=True, out_indices=[0, 2])
    assert [m.shape for m in features(images)] == [(2, 32, 4, 4)] * 2
    assert features.feature_info.channels() == [32, 32]
    assert features.feature_info.reduction() == [8, 8]


def test_attention_mask_and_causality(model, images):
    mask = torch.ones(17, 17, dtype=torch.bool)
    torch.testing.assert_close(model(images, attn_mask=mask), model(images))
    assert not torch.equal(model(images, is_causal=True), model(images))


def test_gradient_checkpointing(model, images):
    model(images).sum().backward()
    expected = {name: param.grad.clone() for name, param in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).sum().backward()
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.grad, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def test_fx_tracing(model, images):
    """As timm does it: with its own list of what is not traced, and by torchvision's extractor."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model.eval()
    kwargs = {
        'tracer_kwargs': {
            'leaf_modules': get_notrace_modules(),
            'autowrap_functions': get_notrace_functions(),
        }
    }
    nodes, _ = get_graph_node_names(model, **kwargs)
    traced = create_feature_extractor(model, [nodes[-1]], **kwargs)
    torch.testing.assert_close(traced(images)[nodes[-1]], model(images), atol=1e-6, rtol=1e-5)
    traced(images)[nodes[-1]].sum().backward()
    assert any('atoms' in n and p.grad is not None for n, p in traced.named_parameters())


def test_torch_compile_fullgraph(small, images):
    for variant in ('direct', 'mlp'):
        torch.compiler.reset()
        model = small(depth=2, **VARIANTS[variant])
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        out = compiled(images)
        torch.testing.assert_close(out, model(images))
        out.sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_torch_export(model, images):
    model.eval()
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))


def test_state_dict_holds_every_atom_once_and_travels_as_safetensors(model, small, images, request):
    state = model.state_dict()
    atoms = [key for key in state if 'atoms' in key]
    assert sorted(atoms) == sorted(f'blocks.attn_banks.{name}.atoms' for name in model.banks)
    blob = safetensors.torch.save(state)
    other = small(**VARIANTS[request.node.callspec.params['model']])
    other.load_state_dict(safetensors.torch.load(blob), strict=True)
    assert torch.equal(other(images), model(images))


def test_load_with_assign_and_meta_device(model, small, images, request):
    kwargs = VARIANTS[request.node.callspec.params['model']]
    with torch.device('meta'):
        meta = small(**{k: v for k, v in kwargs.items() if k not in ('coef', 'coefficients')})
        if kwargs.get('coefficients') == 'mlp':
            meta = small(**kwargs)
    assert all(p.is_meta for p in meta.parameters())
    if kwargs.get('coefficients') == 'frozen':
        meta = small(**kwargs)
    meta.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(meta(images), model(images))


def test_meta_init_then_to_empty_then_init_weights(small, images):
    with torch.device('meta'):
        model = small()
    model.to_empty(device='cpu')
    model.init_weights()
    assert torch.isfinite(model(images)).all()
    rows = torch.stack([block.attn.coef.q for block in model.blocks])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_deepcopy_and_ema(model, images):
    clone = copy.deepcopy(model)
    assert torch.equal(clone(images), model(images))
    ema = ModelEmaV3(model, decay=0.5)
    before = next(model.banks.parameters()).detach().clone()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1.0)
    ema.update(model)
    torch.testing.assert_close(next(ema.module.banks.parameters()), before + 0.5)
    assert not torch.equal(ema.module(images), model(images))
    assert torch.equal(next(clone.banks.parameters()), before), 'the copy must own its atoms'


def test_pickle_and_torch_save(model, images):
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images), model(images))


def test_double(model, small, images):
    model = model.double()
    out = model(images.double())
    assert out.dtype == torch.float64
    torch.testing.assert_close(model.float()(images), out.float(), atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_is_as_exact_as_dense(model, small, images):
    """The composed weights are those of float32; the rest is autocast as in the dense model."""
    dense = dense_baseline(model, small)
    with torch.autocast('cpu', torch.bfloat16):
        out, expected = model(images), dense(images)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_functional_call_reaches_the_atoms(model, images):
    params = {name: param.detach() for name, param in model.named_parameters()}
    doubled = {n: p * 2 if 'atoms' in n else p for n, p in params.items()}
    out = functional_call(model, doubled, (images,))
    assert not torch.equal(out, model(images))
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for bank in clone.banks.values():
            bank.atoms.mul_(2)
    assert torch.equal(out, clone(images))
    grads = grad(lambda p: functional_call(model, p, (images,)).sum())(params)
    model(images).sum().backward()
    for name, param in model.named_parameters():
        torch.testing.assert_close(grads[name], param.grad, atol=1e-5, rtol=1e-5)
