from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import masa_vit
from masa_vit.inspection import coefficients
from masa_vit.inspection.ablation import ablate_atoms

MODELS = {
    'direct': {},
    'mlp': {'coefficients': 'mlp'},
    'frozen': {'coefficients': 'frozen', 'coef': [[1.0, 0.5], [2.0, 1.0], [0.3, 1.0], [1.0, 1.0]]},
    'common': {'projections': 'qkv', 'dictionaries': ['qv', 'k']},
    'groups': {
        'groups': [[0, 3], [1, 2]],
        'num_atoms': {'q': 1, 'k': [1, 2], 'v': [2, 1], 'o': 1},
        'residual_rank': {'v': 2},
    },
    'checkpointed': {'reg_tokens': 1, 'global_pool': 'avg', 'qk_norm': True},
}


@pytest.fixture(params=MODELS)
def model(small, request) -> nn.Module:
    model = strengthen(small(drop_path_rate=0.2, **MODELS[request.param]))
    model.set_grad_checkpointing(request.param == 'checkpointed')
    return model


def strengthen(model):
    """Let the output depend on the attention: at the start it hardly does."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith('.atoms'):
                param.mul_(10)
            elif name == 'head.weight':
                param.mul_(50)
            elif '.up_' in name:
                nn.init.normal_(param, std=0.1)
    return model


@torch.no_grad()
def by_hand(model, images, name, atom, layers):
    """Logits of the whole model, and of the one whose weights have been edited (folded)."""
    whole = masa_vit.fold(model).eval()
    edited = copy.deepcopy(whole)
    coefs = coefficients(model)[name]
    groups = sorted((d.layers, key) for key, d in model.dictionaries.items() if name in d.names)
    atoms = torch.cat([model.banks[key].atoms for _, key in groups])
    for layer in layers:
        part = coefs[layer, atom] * atoms[atom]
        attn = edited.blocks[layer].attn
        if name == 'o':
            attn.proj.weight -= part
        else:
            start = 32 * 'qkv'.index(name)
            attn.qkv.weight[start : start + 32] -= part
    return whole(images), edited(images)


def effect(logits, edited):
    kl = F.kl_div(edited.log_softmax(-1), logits.softmax(-1), reduction='batchmean')
    return kl, ((edited - logits).norm(dim=-1) / logits.norm(dim=-1)).mean()


def test_every_atom_scores_as_a_model_edited_by_hand(model, images):
    found = ablate_atoms(model, iter([images[:1], images[1:]]))
    coefs = coefficients(model)
    assert list(found.by_layer) == list(found.everywhere) == list(coefs)
    assert found.num_images == 2
    assert found.accuracy is None
    for name, coef in coefs.items():
        depth, num_atoms = coef.shape
        by_layer, everywhere = found.by_layer[name], found.everywhere[name]
        assert by_layer.kl.shape == by_layer.distance.shape == (depth, num_atoms)
        assert everywhere.kl.shape == everywhere.distance.shape == (num_atoms,)
        assert by_layer.accuracy is None
        for atom in range(num_atoms):
            cases = [([layer], by_layer, (layer, atom)) for layer in range(depth)]
            for layers, scores, cell in [*cases, (range(depth), everywhere, atom)]:
                kl, distance = effect(*by_hand(model, images, name, atom, layers))
                torch.testing.assert_close(scores.kl[cell], kl, atol=1e-5, rtol=1e-3)
                torch.testing.assert_close(scores.distance[cell], distance, atol=1e-5, rtol=1e-3)
                assert (scores.distance[cell] > 1e-4) == bool(coef[layers, atom].any())


def test_the_model_is_left_as_it_is(model, images):
    for training in (True, False):
        model.train(training)
        model.blocks[1].eval()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        generator = model.generator
        ablate_atoms(model, [images])
        after = model.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(state[key], value) for key, value in after.items())
        assert [module.training for module in model.modules()] == modes
        assert model.generator is generator
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_atom_without_coefficients_scores_exactly_zero(small, images):
    model = strengthen(small())
    with torch.no_grad():
        for block in model.blocks:
            block.attn.coef.k[1] = 0
        model.blocks[2].attn.coef.v.zero_()
    found = ablate_atoms(model, [(images, torch.tensor([0, 1]))])
    k, v = found.by_layer['k'], found.by_layer['v']
    for values in (*k, *found.everywhere['k']):
        assert not values[..., 1].any()
    assert not any(values[2].any() for values in v)
    assert (k.distance[[0, 1, 3], 0] > 0).all()
    assert k.distance[2, 0] == 0, 'where all values are zero, keys do not matter'
    assert (v.distance[[0, 1, 3]] > 0).all()


def test_atoms_that_do_not_matter_to_the_model_score_zero(small, images):
    """Not for a coefficient of zero, but by the passes: the model runs the same with and without."""
    model = strengthen(small())
    with torch.no_grad():
        model.banks['o'].atoms[1] = 0
    found = ablate_atoms(model, [images]).by_layer['o']
    assert not found.kl[:, 1].any()
    assert not found.distance[:, 1].any()


def test_accuracy(small):
    model, images = strengthen(small()), torch.randn(12, 3, 32, 32)
    logits, edited = by_hand(model, images, 'v', 1, [0])
    everywhere = by_hand(model, images, 'v', 1, range(4))[1]
    classes = logits.argmax(-1)
    classes[:3] = edited.argmax(-1)[:3]
    batches = [(images[:5], classes[:5]), [images[5:], classes[5:]]]
    found = ablate_atoms(model, batches)

    def top1(logits):
        return 100 * (logits.argmax(-1) == classes).float().mean().item()

    assert found.accuracy == pytest.approx(top1(logits))
    lost = top1(edited) - top1(logits)
    assert lost < 0
    assert found.by_layer['v'].accuracy[0, 1].item() == pytest.approx(lost, abs=1e-4)
    lost = top1(everywhere) - top1(logits)
    assert found.everywhere['v'].accuracy[1].item() == pytest.approx(lost, abs=1e-4)


def test_accuracy_is_of_the_images_with_classes(small):
    model, images = strengthen(small()), torch.randn(6, 3, 32, 32)
    classes = torch.zeros(4, dtype=torch.long)
    mixed = ablate_atoms(model, [(images[:4], classes), images[4:]])
    alone = ablate_atoms(model, [(images[:4], classes)])
    assert mixed.accuracy == alone.accuracy
    assert mixed.num_images == 6
    for name in 'qkvo':
        assert torch.equal(mixed.by_layer[name].accuracy, alone.by_layer[name].accuracy)


def test_refusals(small, images):
    with pytest.raises(ValueError, match='nothing is shared in this VisionTransformer'):
        ablate_atoms(small('vit_tiny_patch16_224'), [images])
    with pytest.raises(TypeError, match='Sequential is not a MasaVisionTransformer: pass'):
        ablate_atoms(nn.Sequential(small()), [images])
    with pytest.raises(ValueError, match='num_classes=0'):
        ablate_atoms(small(num_classes=0), [images])
    with pytest.raises(ValueError, match='the batches are empty'):
        ablate_atoms(small(), [])
    with pytest.raises(ValueError, match=r'classes have shape \(2, 5\), expected \(2,\)'):
        ablate_atoms(small(), [(images, torch.zeros(2, 5))])
