from __future__ import annotations

import pytest
import torch

import masa_vit
from masa_vit.export import parity
from masa_vit.export.parity import ExportError, make_form


def test_a_form_is_a_copy_that_computes_the_same(small, images):
    model = small(coefficients='mlp').train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for shared in (True, False):
        form = make_form(model, shared=shared)
        assert not form.model.training
        torch.testing.assert_close(form.model(images), model.eval()(images), rtol=0, atol=1e-6)
        model.train()
        assert getattr(form.model, 'generator', None) is None
        assert [len(batch) for batch in form.images] == [1, 3]
        assert form.rounding == 0
    assert model.generator is not None
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_rounded_to_the_dtype_of_the_file(small):
    model = small()
    form = make_form(model, shared=True, dtype='bf16')
    atoms = model.banks.q.atoms
    assert torch.equal(form.model.banks.q.atoms, atoms.bfloat16().float())
    stored = form.stored()
    assert stored.banks.q.atoms.dtype == stored.pos_embed.dtype == torch.bfloat16
    for kept in (stored.blocks[1].attn.coef.q, stored.norm.weight, stored.blocks[0].attn.qkv.bias):
        assert kept.dtype == torch.float32
    assert torch.equal(form.model.blocks[1].attn.coef.q, model.blocks[1].attn.coef.q)
    assert 1e-5 < form.rounding < 0.1
    assert form.size() == sum(v.numel() * v.element_size() for v in stored.state_dict().values())


def test_the_mlp_of_the_coefficients_is_not_rounded(small):
    model = small(coefficients='mlp')
    form = make_form(model, shared=True, baked=False, dtype='bf16')
    for name, weight in form.model.generator.named_parameters():
        assert torch.equal(weight, model.generator.get_parameter(name))


def test_a_model_in_half_precision_and_with_checkpointing(small, images):
    model = small().bfloat16()
    model.set_grad_checkpointing()
    form = make_form(model, shared=False)
    expected = masa_vit.fold(model.float()).eval()(images)
    torch.testing.assert_close(form.model(images), expected, rtol=0, atol=1e-6)
    assert not form.model.grad_checkpointing
    assert model.grad_checkpointing


def test_what_cannot_be_exported(small):
    with pytest.raises(ValueError, match=r"dtype='int8' is unknown, expected one of fp32, bf16"):
        make_form(small(), shared=True, dtype='int8')
    with pytest.raises(ValueError, match='nothing is shared in this VisionTransformer'):
        make_form(small('vit_tiny_patch16_224'), shared=True)
    with pytest.raises(TypeError, match='features_only'):
        make_form(small(features_only=True, out_indices=(1,)), shared=False)
    model = small()
    with torch.no_grad():
        model.banks.o.atoms[0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match=r'not finite, in blocks\.attn_banks\.o\.atoms'):
        make_form(model, shared=False)
    with torch.no_grad():
        model.banks.o.atoms[0, 0, 0] = 1e6
    with pytest.raises(
        ValueError, match=r'rounded to fp16 has .* blocks\.attn_banks\.o\.atoms: use bf16'
    ):
        make_form(model, shared=True, dtype='fp16')


def test_other_outputs_are_refused(small):
    form = make_form(small(), shared=True)
    assert form.check(form.model, 'it') == 0
    limit = 0.9 * parity.TOLERANCE * max(float(o.abs().max()) for o in form.outputs)
    assert form.check(lambda x: form.model(x) + limit, 'it') == pytest.approx(9e-5, rel=0.01)
    for wrong in (lambda x: form.model(x) * 1.001, lambda x: form.model(x)[:1], torch.zeros_like):
        with pytest.raises(ExportError, match=r'the outputs of it differ .* nothing was written'):
            form.check(wrong, 'it')
    with pytest.raises(ExportError, match='it does not run: RuntimeError'):
        form.check(lambda x: form.model(x[:, :2]), 'it')
    with pytest.raises(ExportError, match=r'differ .* by nan'):
        form.check(lambda x: form.model(x) * float('nan'), 'it')


def test_a_wrong_fold_is_refused(small, monkeypatch):
    monkeypatch.setattr(parity, 'fold', lambda model: small('vit_tiny_patch16_224').eval())
    with pytest.raises(ExportError, match='the model, folded or baked, differ'):
        make_form(small(), shared=False)


def test_tells_that_the_check_tells_little(small, caplog):
    model = small()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(1)
    make_form(model, shared=True)
    assert 'the model gives the same output for every image' in caplog.text
