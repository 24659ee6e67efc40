"""Every sharing scheme is a setting of one model, and folds to the dense one."""

from __future__ import annotations

import re

import pytest
import timm
import torch

import masa_vit
from masa_vit.inspection import count_parameters, projection_weights
from masa_vit.models.schemes import SCHEMES, scheme_settings
from masa_vit.models.state_dict import read_stack

EXTRA = {'low-rank': {'residual_rank': 5}}
SMALL = {
    'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 6, 'num_heads': 4, 'num_classes': 5,
}  # fmt: skip
D, L, S = 32, 6, 2
DENSE = 4 * L * D * D
"""Weights of Q, K, V and O."""


def create(scheme: str, **kwargs):
    torch.manual_seed(0)
    args = {**SMALL, **EXTRA.get(scheme, {}), **kwargs}
    return timm.create_model('vit_tiny_masa_s2', scheme=scheme, **args).eval()


def spread(model) -> None:
    """Move every parameter: coefficients are equal over channels at first, residuals zero."""
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)


@pytest.mark.parametrize(
    ('scheme', 'attention'),
    [
        ('masa-qkvo', 4 * S * D * D + 4 * L * S),
        ('masa-qkv', 3 * S * D * D + 3 * L * S + L * D * D),
        ('masa-channel', 4 * S * D * D + 4 * L * S * D),
        ('common-qv', 3 * S * D * D + 4 * L * S),
        ('common-qkv', 2 * S * D * D + 4 * L * S),
        ('common-qkvo', S * D * D + 4 * L * S),
        ('sequential', 4 * S * D * D),
        ('repeat', 4 * S * D * D),
        ('cycle-reverse', 4 * S * D * D),
        ('single', 4 * D * D),
        ('tied-qkv', 2 * L * D * D),
        ('tied-qk', 3 * L * D * D),
        ('tied-kv', 3 * L * D * D),
        ('masa-tied-qkv', 2 * S * D * D + 2 * L * S),
        ('low-rank', 4 * L * 2 * D * 5),
        ('gqa', 2 * L * D * D + 2 * L * D * D // 2),
    ],
)
def test_parameters_of_the_attention(scheme, attention):
    dense = timm.create_model('vit_tiny_patch16_224', **SMALL)
    count = [sum(p.numel() for p in model.parameters()) for model in (create(scheme), dense)]
    assert count[0] == count[1] - DENSE + attention


@pytest.mark.parametrize('scheme', SCHEMES)
def test_counts_of_parameters(scheme):
    counts = count_parameters(create(scheme))
    dense = timm.create_model('vit_tiny_patch16_224', **SMALL)
    assert counts.dense_attention == DENSE
    assert counts.dense_total == sum(p.numel() for p in dense.parameters())
    assert counts.total == sum(p.numel() for p in create(scheme).parameters())
    assert counts.attention_removed > 0


def test_a_dictionary_for_each_layer_of_the_mlp():
    model = create('masa-fc')
    assert model.blocks.mlp_banks['fc1'].atoms.shape == (S, 4 * D, D)
    assert model.blocks.mlp_banks['fc2'].atoms.shape == (S, D, 4 * D)
    assert model.blocks[3].mlp.coef.fc1.shape == (S,)


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('training', [True, False])
def test_folds_to_the_dense_model(scheme, training, images):
    model = create(scheme)
    spread(model)
    folded = masa_vit.fold(model.train(training))
    assert type(folded).__name__ == 'VisionTransformer'
    assert not any(isinstance(m, masa_vit.layers.SharedLinear) for m in folded.modules())
    assert torch.equal(folded(images), model(images))
    assert set(folded.state_dict()) == set(
        timm.create_model('vit_tiny_patch16_224', **SMALL).state_dict()
    )


@pytest.mark.parametrize('scheme', SCHEMES)
def test_everything_trains(scheme, images):
    model = create(scheme).train()
    spread(model)
    model(images).square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in unused if not name.endswith('k.bias')] == []


@pytest.mark.parametrize('scheme', SCHEMES)
def test_weights_start_with_the_spread_of_the_dense_model(scheme):
    torch.manual_seed(0)
    args = {**SMALL, 'embed_dim': 96, 'residual_rank': 24} if scheme == 'low-rank' else {}
    model = create(scheme, **args)
    low = 0.009 if scheme == 'low-rank' else 0.018  # a quarter of the singular values
    for block in model.blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc2):
            assert low < float(layer.weight.detach().std()) < 0.022


def test_tied_projections_have_one_weight_and_biases_of_their_own():
    for scheme, same in (('tied-qkv', 'qkv'), ('tied-qk', 'qk'), ('tied-kv', 'kv')):
        layer = create(scheme).blocks[2].attn.qkv
        weights = dict(zip('qkv', layer.weight.chunk(3), strict=True))
        for a, b in (('q', 'k'), ('k', 'v'), ('q', 'v')):
            assert torch.equal(weights[a], weights[b]) == ({a, b} <= {*same})
        assert layer.bias.shape == (3 * D,)


def test_grouped_queries_repeat_heads_of_keys_and_values():
    layer = create('gqa', num_kv_heads=2).blocks[0].attn.qkv
    q, k, v = layer.weight.unflatten(0, (3, 4, D // 4))  # (heads, head_dim, in) each
    for weight in (k, v):
        assert torch.equal(weight[0], weight[1])
        assert torch.equal(weight[2], weight[3])
        assert not torch.equal(weight[1], weight[2])
    assert not torch.equal(q[0], q[1])


def test_grouped_queries_and_dictionaries_go_together(images):
    model = create('masa-qkvo', num_kv_heads=1, dictionaries=['q', 'kv', 'o'])
    assert model.banks['kv'].atoms.shape == (S, D // 4, D)
    assert torch.equal(masa_vit.fold(model)(images), model(images))


@pytest.mark.parametrize(
    ('scheme', 'order'),
    [('sequential', '000111'), ('repeat', '010101'), ('cycle-reverse', '010110')],
)
def test_layers_share_whole_matrices(scheme, order):
    model = create(scheme)
    for block, atom in zip(model.blocks, order, strict=True):
        assert torch.equal(block.attn.proj.weight, model.banks['o'].atoms[int(atom)])


def test_the_orders_of_the_paper():
    def order(scheme):
        coef = scheme_settings(scheme, depth=12, num_atoms=4, num_heads=3)['coef']
        return ''.join(str(row.index(1.0)) for row in coef)

    assert order('sequential') == '000111222333'
    assert order('repeat') == '012301230123'
    assert order('cycle-reverse') == '012301233210'


def test_low_rank_factors_start_as_the_best_approximation():
    torch.manual_seed(0)
    blocks = [torch.nn.ModuleDict({'o': torch.nn.Linear(8, 8)}) for _ in range(2)]
    dense = blocks[0]['o'].weight.detach().clone()
    masa_vit.layers.share_linears(blocks, {'o': ['o']}, {}, residual_ranks={'o': [3, 3]})
    u, s, v = torch.linalg.svd(dense)
    torch.testing.assert_close(blocks[0]['o'].weight, u[:, :3] * s[:3] @ v[:3])


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_state_dict_names_its_scheme(scheme, images):
    """The arguments read from a state dict create the model that loads it."""
    model = create(scheme)
    spread(model)
    args = read_stack(model.state_dict()).sharing_args()
    if scheme == 'gqa':
        args['num_kv_heads'] = 2
    again = timm.create_model('vit_tiny_masa_s2', **SMALL, **args).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(images), model(images))


@pytest.mark.parametrize('scheme', SCHEMES)
def test_no_other_scheme_loads_it(scheme):
    state = create(scheme).state_dict()
    for other in SCHEMES:
        # with one-hot rows among direct coefficients, and as a model with the same tensors
        if {scheme, other} <= {'masa-qkvo', 'masa-mlp', 'sequential', 'repeat', 'cycle-reverse'}:
            continue
        if other != scheme:
            with pytest.raises((ValueError, RuntimeError)):
                create(other).load_state_dict(state)


@pytest.mark.parametrize('scheme', ['tied-qkv', 'gqa', 'low-rank'])
def test_dense_and_shared_weights_are_told_apart(scheme, tmp_path):
    model, dense = create(scheme), timm.create_model('vit_tiny_patch16_224', **SMALL)
    with pytest.raises(ValueError, match='the checkpoint is dense'):
        model.load_state_dict(dense.state_dict())
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='is the checkpoint of a MASA model'):
        masa_vit.load_weights(dense, tmp_path / 'a.pth')


@pytest.mark.parametrize('scheme', SCHEMES)
def test_hub_folder_and_small_file(scheme, tmp_path, images):
    model = create(scheme)
    spread(model)
    masa_vit.export.export_hub(model, tmp_path / 'hub')
    again = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    torch.testing.assert_close(again(images), model(images))
    dense = masa_vit.load_folded(tmp_path / 'hub').eval()
    torch.testing.assert_close(dense(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_timm_groups_every_parameter_once(scheme):
    model = create(scheme)
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sorted(n for names in groups.values() for n in names) == sorted(
        n for n, _ in model.named_parameters()
    )
    skip = model.no_weight_decay()
    assert {n for n, _ in model.named_parameters() if '.coef.' in n} <= skip
    assert not any('atoms' in name or 'dense_' in name for name in skip)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_inspection_reads_the_weights(scheme):
    model = create(scheme)
    spread(model)
    if scheme == 'masa-channel':
        with pytest.raises(ValueError, match='coefficients for each output channel'):
            projection_weights(model)
        return
    weights = projection_weights(model)
    folded = projection_weights(masa_vit.fold(model))
    repeated = {'gqa', 'tied-qkv', 'tied-qk', 'tied-kv', 'masa-tied-qkv'}
    for name in 'qo' if scheme in repeated else 'qkvo':
        torch.testing.assert_close(weights.compose(name), folded.compose(name))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'scheme': 'sequentially'}, "scheme='sequentially' is unknown, expected one of masa-qkvo"),
        ({'tie': 'qv'}, r"tie='qv' is not valid, expected one of"),
        ({'num_kv_heads': 3}, r'num_kv_heads=3 is not valid, expected a divisor of num_heads=4'),
        ({'num_kv_heads': 2, 'tie': 'qk'}, r'K cannot be tied to Q'),
        ({'scheme': 'low-rank', 'residual_rank': 0}, r'needs a residual_rank of at least 1'),
        ({'mlp_num_atoms': 7}, r'num_atoms=7 is larger than the number of layers, 6'),
        ({'scheme': 'masa-mlp', 'mlp_num_atoms': 2}, r'the coefficient MLP serves the attention'),
    ],
)
def test_wrong_arguments(kwargs, message):
    args = {'scheme': 'masa-qkvo', **kwargs}
    with pytest.raises(ValueError, match=message):
        create(**args)


def test_a_config_of_a_mistyped_scheme_is_named():
    with pytest.raises(ValueError, match=re.escape("scheme='tied' is unknown")):
        masa_vit.models.create_timm_model('vit_tiny_masa_s4', {'scheme': 'tied'})
