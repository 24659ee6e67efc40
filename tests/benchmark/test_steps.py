from __future__ import annotations

import pytest
import torch
from torch import nn

from masa_vit.benchmark import steps
from masa_vit.benchmark.memory import peak_memory
from masa_vit.benchmark.subjects import check_timm, timm_subject
from masa_vit.benchmark.timing import time_pairs

CPU = torch.device('cpu')


def test_a_training_step_trains_and_its_parts_make_the_whole(spec):
    subject = timm_subject(spec())
    before = [parameter.detach().clone() for parameter in subject.model.parameters()]
    seconds = steps.training_step(subject, CPU)()
    assert seconds['training step'] == pytest.approx(
        seconds['forward'] + seconds['backward'] + seconds['optimizer']
    )
    assert min(seconds.values()) > 0
    changed = [
        not torch.equal(parameter, value)
        for parameter, value in zip(subject.model.parameters(), before, strict=True)
    ]
    assert all(changed)
    assert all(parameter.grad is None for parameter in subject.model.parameters())


@pytest.mark.parametrize(('dtype', 'expected'), [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_the_precision_is_that_asked_for(spec, dtype, expected):
    subject = timm_subject(spec())
    seen: list[tuple[torch.dtype, bool]] = []
    subject.model.head.register_forward_hook(
        lambda module, inputs, output: seen.append((output.dtype, module.training))
    )
    steps.training_step(subject, CPU, dtype)()
    steps.evaluation(subject, subject.model, CPU, dtype)()
    assert seen == [(expected, True), (expected, False)]


def test_the_model_is_compiled_when_asked_for(spec, monkeypatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, 'compile', lambda model: compiled.append(model) or model)
    subject = timm_subject(spec())
    steps.training_step(subject, CPU, compiled=True)()
    steps.evaluation(subject, subject.model, CPU, compiled=True)()
    assert compiled == [subject.model] * 2


def test_checkpointing_recomputes_the_blocks(spec):
    subject = timm_subject(spec(checkpointing=True))
    calls: list[nn.Module] = []
    subject.model.blocks[0].mlp.fc1.register_forward_hook(lambda m, i, o: calls.append(m))
    steps.training_step(subject, CPU)()
    assert len(calls) == 2


def test_reentrant_checkpointing_is_refused(spec, monkeypatch):
    monkeypatch.setattr('masa_vit.benchmark.subjects.use_reentrant_ckpt', lambda: True)
    check_timm(spec())
    with pytest.raises(ValueError, match='TIMM_REENTRANT_CKPT'):
        check_timm(spec(checkpointing=True))


@pytest.mark.parametrize('options', [{}, {'coefficients': 'mlp'}, {'dense': True}])
def test_a_loaded_file_gives_the_same_output(spec, tmp_path, options):
    subject = timm_subject(spec(**options))
    images = torch.randn(2, 3, 32, 32)
    expected = subject.model.eval()(images)
    steps.save_weights(subject.model, tmp_path / 'x.safetensors')
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.fill_(7.0)
    model = steps.load(subject, tmp_path / 'x.safetensors', CPU)
    torch.testing.assert_close(model.eval()(images), expected, atol=1e-5, rtol=1e-4)


def test_loading_is_timed(spec):
    ours, dense = timm_subject(spec()), timm_subject(spec(dense=True))
    with steps.loading(ours, CPU) as load_ours, steps.loading(dense, CPU) as load_dense:
        (row,) = time_pairs(load_ours, load_dense, 1)
    assert row.what == 'load'


def test_compress_is_timed(spec, monkeypatch):
    given = []
    monkeypatch.setattr(
        'masa_vit.compression.compress', lambda model, num_atoms: given.append(num_atoms)
    )
    dense = timm_subject(spec(dense=True)).model
    assert steps.compressing(dense, timm_subject(spec()).model)()['compress'] > 0
    assert given == [2]


def test_peak_memory_sees_the_activations(spec):
    peak, added = peak_memory(timm_subject, spec(batch_size=256, dense=True))
    # of each block, what its four linear layers and the GELU keep, and no more than ten times that
    activations = 2 * 4 * 256 * 17 * 32 * (1 + 1 + 1 + 4 + 4)
    assert activations < added < 10 * activations
    assert peak - added > 2**26, 'less than torch itself needs'
