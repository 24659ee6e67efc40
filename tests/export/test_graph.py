from __future__ import annotations

import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

import masa_vit
from masa_vit.export import ExportError, export_folded, export_onnx, export_torch, graph

SIZES = (1, 2, 5)


@pytest.fixture(scope='module')
def model(small):
    torch.manual_seed(0)
    model = small(embed_dim=64, depth=3, mlp_ratio=1.0, num_atoms=1, coefficients='mlp').eval()
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        'label_names': ['cat', 'dog', 'emu', 'ox', 'yak'],
    }
    return model


@pytest.fixture(scope='module')
def files(model, tmp_path_factory):
    """(shared, dtype) -> path of the ONNX file, and what the export told."""
    root = tmp_path_factory.mktemp('onnx')
    combinations = [(False, 'fp32'), (True, 'fp32'), (True, 'bf16')]
    paths = {key: root / f'{key[0]}_{key[1]}.onnx' for key in combinations}
    return {
        key: (path, export_onnx(model, path, shared=key[0], dtype=key[1]))
        for key, path in paths.items()
    }


def rounded(model):
    model = masa_vit.bake(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16())
    return model


@pytest.mark.parametrize(('shared', 'dtype'), [(False, 'fp32'), (True, 'fp32'), (True, 'bf16')])
@torch.no_grad()
def test_onnx(model, files, shared, dtype):
    import copy

    path, exported = files[shared, dtype]
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    expected = model if dtype == 'fp32' else rounded(copy.deepcopy(model))
    for size in SIZES:
        images = torch.randn(size, 3, 32, 32)
        (logits,) = session.run(None, {'images': images.numpy()})
        assert logits.shape == (size, 5)
        torch.testing.assert_close(torch.from_numpy(logits), expected(images), rtol=0, atol=1e-5)
    assert exported.path == path
    assert exported.size == path.stat().st_size
    assert exported.difference < 1e-5
    assert (exported.rounding > 0) == (dtype == 'bf16')


def test_atoms_are_stored_once(model, files):
    sizes = {key: exported.size for key, (_, exported) in files.items()}
    # L - S = 2 times 4 * 64 * 64 numbers of 4 bytes less, though the graph itself is larger
    assert sizes[False, 'fp32'] - sizes[True, 'fp32'] > 0.8 * 2 * 4 * 4 * 64 * 64
    assert sizes[True, 'bf16'] < 0.7 * sizes[True, 'fp32']
    stored = sum(
        onnx.numpy_helper.to_array(tensor).size
        for tensor in onnx.load(files[True, 'fp32'][0]).graph.initializer
    )
    parameters = sum(p.numel() for p in masa_vit.bake(model).parameters())
    # equal ones (new biases, norms) are written once
    assert 0.95 * parameters < stored < 1.01 * parameters


def test_what_a_program_needs_to_know_is_in_the_file(files):
    proto = onnx.load(files[False, 'fp32'][0])
    properties = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert properties['input'] == {'size': [3, 32, 32], 'mean': [0.5] * 3, 'std': [0.5] * 3}
    assert properties['label_names'] == ['cat', 'dog', 'emu', 'ox', 'yak']
    assert '.py' not in str(proto.graph.node), 'no stack traces, which name folders'


@pytest.mark.parametrize(('shared', 'dtype'), [(False, 'bf16'), (True, 'fp32')])
def test_torch_export(small, tmp_path, shared, dtype):
    kwargs = {'groups': [[0], [1]], 'num_atoms': 1, 'residual_rank': 2} if shared else {}
    model = small(depth=2, **kwargs).eval()
    path = tmp_path / 'model.pt2'
    exported = export_torch(model, path, shared=shared, dtype=dtype)
    program = torch.export.load(path)
    atoms = [name for name in program.state_dict if 'atoms' in name]
    assert len(atoms) == (8 if shared else 0)
    expected = model if dtype == 'fp32' else rounded(masa_vit.fold(model))
    for size in SIZES:
        images = torch.randn(size, 3, 32, 32)
        torch.testing.assert_close(program.module()(images), expected(images), rtol=0, atol=1e-5)
    assert exported.size == path.stat().st_size


def test_runs_without_this_package(small, tmp_path):
    """A folded folder, and a program that composes."""
    model = small(depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.save((images, model(images).detach()), tmp_path / 'expected.pt')
    export_folded(model, tmp_path / 'folded')
    export_torch(model, tmp_path / 'shared.pt2', shared=True)
    code = (
        'import sys, timm, torch\n'
        'images, expected = torch.load("expected.pt")\n'
        'model = timm.create_model("local-dir:folded", pretrained=True).eval()\n'
        'program = torch.export.load("shared.pt2").module()\n'
        'for run in (model, program):\n'
        '    torch.testing.assert_close(run(images), expected, rtol=0, atol=1e-5)\n'
        'assert not [name for name in sys.modules if name.startswith("masa_vit")]\n'
        'import masa_vit\n'
        'import masa_vit.export\n'
        'assert "onnx" not in sys.modules and "onnxruntime" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)


def test_a_wrong_program_is_not_left(small, tmp_path, contents, monkeypatch):
    model = small(depth=2)
    path = tmp_path / 'model.pt2'
    path.write_bytes(b'good')
    right = graph._export

    def wrong(form):
        with torch.no_grad():
            form.model.head.bias.add_(1)
        return right(form)

    monkeypatch.setattr(graph, '_export', wrong)
    with pytest.raises(FileExistsError, match='--force'):
        export_torch(model, path)
    with pytest.raises(ExportError, match='the exported program differ'):
        export_torch(model, path, force=True)
    with pytest.raises(ValueError, match='nothing is shared'):
        export_torch(small('vit_tiny_patch16_224'), path, shared=True, force=True)
    assert contents(tmp_path) == {'model.pt2': b'good'}


def test_a_wrong_onnx_file_is_not_left(model, files, small, tmp_path, contents, monkeypatch):
    path = tmp_path / 'model.onnx'
    path.write_bytes(b'good')
    good, _ = files[False, 'fp32']

    def write(content):
        monkeypatch.setattr(
            graph, '_write_onnx', lambda form, model, file: file.write_bytes(content)
        )

    write(good.read_bytes())
    other = small(embed_dim=64, depth=3, mlp_ratio=1.0, num_atoms=1)
    with pytest.raises(FileExistsError, match='--force'):
        export_onnx(model, path)
    with pytest.raises(ExportError, match='the ONNX file in onnxruntime differ'):
        export_onnx(other, path, force=True)
    write(good.read_bytes()[:1000])
    with pytest.raises(ExportError, match='onnxruntime cannot load the file'):
        export_onnx(model, path, force=True)
    write(bytes(2_000_000))
    with pytest.raises(ExportError, match='wrote some of them more than once'):
        export_onnx(model, path, force=True)
    monkeypatch.setattr(graph, '_LARGEST_PROTOBUF', 10_000)
    with pytest.raises(ValueError, match='an ONNX file holds 2: use dtype bf16'):
        export_onnx(model, path, force=True)
    assert contents(tmp_path) == {'model.onnx': b'good'}
    monkeypatch.undo()
    write(good.read_bytes())
    export_onnx(model, path, force=True)
    assert path.read_bytes() == good.read_bytes()


@pytest.mark.parametrize('package', graph.EXTRA)
def test_a_missing_package_is_named(small, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'ONNX needs {package}.*"masa-vit\[export\]"'):
        export_onnx(small(depth=2), tmp_path / 'a.onnx')


def test_names_of_files(small, tmp_path):
    with pytest.raises(ValueError, match=r'ends in \.onnx'):
        export_onnx(small(depth=2), tmp_path / 'a.pt2')
    with pytest.raises(ValueError, match=r'ends in \.pt2'):
        export_torch(small(depth=2), tmp_path / 'a')
