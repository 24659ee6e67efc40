"""The contracts of shared weights on a GPU: `pytest -m gpu`.

MASA_VIT_GPU_TEST_DEVICE=cpu runs all tests that do not need CUDA on the CPU, to check the tests.
"""

from __future__ import annotations

import copy
import io
import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

import masa_vit
from masa_vit.benchmark import Spec
from masa_vit.benchmark.gpu_suite import Case, print_results, run_cases
from masa_vit.benchmark.results import Report
from masa_vit.layers import SharedLinear

pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ.get('MASA_VIT_GPU_TEST_DEVICE', 'cuda'))
IS_CUDA = DEVICE.type == 'cuda'
if IS_CUDA and not torch.cuda.is_available():
    pytest.skip('no GPU: torch.cuda.is_available() is False', allow_module_level=True)
needs_cuda = pytest.mark.skipif(not IS_CUDA, reason=f'needs CUDA, runs on {DEVICE}')

VARIANTS = {
    'direct': {},
    'mlp': {'coefficients': 'mlp', 'coef_embed_dim': 8, 'coef_hidden_dim': 8},
    'frozen': {'coefficients': 'frozen', 'coef': torch.eye(2)[[0, 0, 1, 1]].tolist()},
    'groups': {'groups': [[0, 1], [2, 3]], 'residual_rank': 2},
}
"""Name -> arguments of `create_model` on top of those of conftest's `SMALL`."""


@pytest.fixture(params=VARIANTS)
def variant(request) -> dict:
    return VARIANTS[request.param]


@pytest.fixture
def model(variant, small) -> nn.Module:
    return make(small, **variant)


@pytest.fixture
def images(images) -> torch.Tensor:
    """Images on the device, (2, 3, 32, 32)."""
    return images.to(DEVICE)


def make(small, **kwargs) -> nn.Module:
    """Create a model on the device, in evaluation mode, with residuals other than zero."""
    model = small(**kwargs)
    for name, param in model.named_parameters():
        if '.up_' in name:
            nn.init.normal_(param, std=0.02)
    return model.to(DEVICE).eval()


def dense_baseline(model: nn.Module, small) -> nn.Module:
    """Create timm's model with the weights that `model` composes, in the dtype of `model`."""
    dense = small('vit_tiny_patch16_224').to(model.head.weight).eval()
    state = {k: v for k, v in model.state_dict().items() if k in dense.state_dict()}
    for name, layer in model.named_modules():
        if isinstance(layer, SharedLinear):
            state[f'{name}.weight'] = layer.weight
    dense.load_state_dict(state)
    return dense


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter; fail where there is none."""
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))


def assert_gradients_close(got, expected, **tolerance) -> None:
    for name, grad in got.items():
        if name in expected:
            torch.testing.assert_close(grad, expected[name], msg=name, **tolerance)


def test_forward_and_gradients_are_those_of_the_dense_model(model, small, images):
    dense = dense_baseline(model, small)
    out, expected = model(images), dense(images)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    got = gradients(model, out.square().sum())
    of_dense = gradients(dense, expected.square().sum())
    assert_gradients_close(got, of_dense, atol=1e-5, rtol=1e-4)
    # chain rule: dL/dD_s = sum_l c_ls dL/dW_l
    for key, (names, layers, _) in model.dictionaries.items():
        expected = torch.zeros_like(model.banks[key].atoms)  # (S, out, in)
        for layer in layers:
            grad_qkv = of_dense[f'blocks.{layer}.attn.qkv.weight'].chunk(3)
            of_name = dict(zip('qkv', grad_qkv, strict=True))
            of_name['o'] = of_dense[f'blocks.{layer}.attn.proj.weight']
            coef = model.blocks[layer].attn.coef.values()
            for name in names:
                expected += coef[name][:, None, None] * of_name[name]
        torch.testing.assert_close(
            got[f'blocks.attn_banks.{key}.atoms'], expected, atol=1e-5, rtol=1e-4
        )


def test_fold_has_difference_0(model, images):
    folded = masa_vit.fold(model)
    assert torch.equal(folded(images), model(images))
    assert {param.device.type for param in folded.parameters()} == {DEVICE.type}


def test_bake(small, images):
    model = make(small, **VARIANTS['mlp'])
    expected = model(images)
    torch.testing.assert_close(masa_vit.bake(model)(images), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_composes_in_the_dtype_of_the_atoms(model, small, images, dtype):
    dense = dense_baseline(model, small)
    with torch.autocast(DEVICE.type, dtype):
        assert model.blocks[0].attn.qkv.weight.dtype == torch.float32
        out, expected = model(images), dense(images)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.isfinite(out).all()
    got, of_dense = (gradients(m, o.float().sum()) for m, o in ((model, out), (dense, expected)))
    assert all(grad.dtype == torch.float32 for grad in got.values())
    assert_gradients_close(got, of_dense, atol=1e-2, rtol=1e-2)


def test_float16_with_a_gradient_scaler(model, images):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**8)
    before = [bank.atoms.detach().clone() for bank in model.banks.values()]
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16):
            loss = model(images).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**8, 'a gradient was not finite'
    for bank, atoms in zip(model.banks.values(), before, strict=True):
        assert not torch.equal(bank.atoms, atoms)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_model_in_half_precision(model, small, images, dtype):
    model, images = model.to(dtype), images.to(dtype)
    out = model(images)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert torch.equal(out, dense_baseline(model, small)(images))
    assert torch.equal(out, masa_vit.fold(model)(images))
    assert all(torch.isfinite(grad).all() for grad in gradients(model, out.sum()).values())


@pytest.mark.parametrize(
    ('name', 'autocast', 'tolerance'), [('groups', False, 1e-4), ('mlp', True, 2e-2)]
)
def test_compiled_is_eager(small, images, name, autocast, tolerance):
    torch.compiler.reset()
    model = make(small, **VARIANTS[name])
    # inductor takes minutes on the CPU
    compiled = torch.compile(model, fullgraph=True, backend='inductor' if IS_CUDA else 'aot_eager')
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        out, expected = compiled(images), model(images)
    tolerances = {'atol': tolerance, 'rtol': tolerance}
    torch.testing.assert_close(out, expected, **tolerances)
    got, eager = (gradients(model, o.float().square().sum()) for o in (out, expected))
    assert_gradients_close(got, eager, **tolerances)
    with torch.no_grad():
        for bank in model.banks.values():
            bank.atoms.mul_(1.5)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        again = compiled(images)
        torch.testing.assert_close(again, model(images), **tolerances)
    assert not torch.allclose(again, out, atol=1e-4)


def test_fused_adamw(model, variant, small, images):
    """Every evaluation uses the weights of the last step."""
    other = copy.deepcopy(model)
    fused, plain = (
        torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-3, fused=f, foreach=False)
        for m, f in ((model, True), (other, False))
    )
    outputs = [model(images).detach()]
    for _ in range(2):
        for m, optimizer in ((model, fused), (other, plain)):
            optimizer.zero_grad()
            m.train()(images).square().sum().backward()
            optimizer.step()
        with torch.no_grad():
            outputs.append(model.eval()(images))
        fresh = make(small, **variant)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(outputs[-1], fresh(images))
        assert not torch.allclose(outputs[-1], outputs[-2], atol=1e-4)
    for param, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, expected, atol=1e-4, rtol=1e-3)


@needs_cuda
@torch.no_grad()
def test_cuda_graph_of_inference(model, images):
    """A replayed graph composes from the atoms and coefficients of the moment."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(images)
    graph.replay()
    before = out.clone()
    torch.testing.assert_close(before, model(images), atol=1e-6, rtol=1e-5)
    for bank in model.banks.values():
        bank.atoms.mul_(2)
    for name, tensor in model.blocks.state_dict().items():
        if '.coef.' in name:
            tensor.mul_(2)
    graph.replay()
    torch.testing.assert_close(out, model(images), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(out, before, atol=1e-4)
    images.normal_()
    graph.replay()
    torch.testing.assert_close(out, model(images), atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing(model, images):
    expected = gradients(model, model.train()(images).sum())
    model.set_grad_checkpointing()
    got = gradients(model, model(images).sum())
    assert_gradients_close(got, expected, atol=1e-5, rtol=1e-4)


def test_moving_there_and_back(variant, small, images):
    model = small(**variant).eval()
    on_cpu, expected = images.cpu(), model(images.cpu())
    model.to(DEVICE)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {DEVICE.type}
    # convolutions run in TF32 by default
    torch.testing.assert_close(model(images).cpu(), expected, atol=5e-3, rtol=1e-2)
    assert torch.equal(model.cpu()(on_cpu), expected)


def test_created_on_the_device(variant, small, images):
    with torch.device(DEVICE):
        model = small(**variant)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {DEVICE.type}
    assert torch.isfinite(model(images)).all()
    with torch.device('meta'):
        empty = small(**variant)
    empty.to_empty(device=DEVICE).init_weights()
    assert torch.isfinite(empty(images)).all()


def test_state_dict_travels_to_the_cpu(model, variant, small, images, tmp_path):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'model.safetensors')
    states = (
        torch.load(file, map_location='cpu', weights_only=True),
        safetensors.torch.load_file(tmp_path / 'model.safetensors'),
    )
    expected = copy.deepcopy(model).cpu()(images.cpu())
    for state in states:
        other = small(**variant).eval()
        other.load_state_dict(state)
        assert torch.equal(other(images.cpu()), expected)


def test_load_folded(model, variant, args, images, tmp_path):
    file = tmp_path / 'model.safetensors'
    safetensors.torch.save_file(model.state_dict(), file)
    folded = masa_vit.load_folded(file, 'vit_tiny_masa_s2', **args, **variant).eval()
    # the weights are composed on the CPU
    torch.testing.assert_close(folded.to(DEVICE)(images), model(images), atol=1e-5, rtol=1e-4)


def test_torch_export(model, images):
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-6, rtol=1e-5)


def test_channels_last(model, images):
    expected = model(images)
    images = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), expected, atol=5e-3, rtol=1e-2)  # TF32
    model = model.to(memory_format=torch.channels_last)
    out = model(images)
    torch.testing.assert_close(out, expected, atol=5e-3, rtol=1e-2)
    assert torch.equal(out, masa_vit.fold(model)(images))
    assert all(torch.isfinite(grad).all() for grad in gradients(model, out.sum()).values())


def test_the_benchmark_suite(args, tmp_path, capsys):
    report = Report({'device': str(DEVICE)}, tmp_path / 'suite.json')
    spec = Spec('vit_tiny_masa_s2', False, args, 2, device=str(DEVICE))
    measures = ('train', 'memory', 'eval', 'fold-eval')
    run_cases([Case(measure, spec, False) for measure in measures], report, 120.0, pairs=1)
    result = json.loads((tmp_path / 'suite.json').read_text())
    assert result['notes'] == []
    names = {row['what'] for row in result['results']}
    assert {'training step', 'peak memory of training', 'evaluation after fold'} <= names
    if IS_CUDA:
        assert result['machine']['device'] == torch.cuda.get_device_name()
    print_results(report)
    assert 'training step, 2' in capsys.readouterr().out
