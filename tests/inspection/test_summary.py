"""All quantities of a model, and of two: declared axes and invariances, known answers."""

import copy

import pytest
import torch

import masa_vit
from masa_vit.inspection import (
    QUANTITIES,
    compare,
    history_quantities,
    projection_weights,
    record_of,
    summarize,
    summary_numbers,
)
from masa_vit.layers import parse_bank_name


def summary(model):
    return summarize(projection_weights(model))


def arrays(summary):
    for scope in (summary.projections, summary.dictionaries):
        for of, quantities in scope.items():
            for name, value in quantities.items():
                yield (of, name), value


def changed(model, change):
    """The same function, its atoms changed by `change` (S, S) and its coefficients by the inverse."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for key, bank in model.banks.items():
            bank.atoms.copy_(torch.einsum('st,toi->soi', change, bank.atoms.double()))
            names, layers = parse_bank_name(key)
            for block in model.blocks if layers is None else [model.blocks[i] for i in layers]:
                for name in names:
                    row = getattr(block.attn.coef, name)
                    row.copy_(row.double() @ torch.linalg.inv(change))
    return model.eval()


SCALED = torch.diag(torch.tensor([3.0, -0.25])).double()
MIXED = torch.tensor([[1.0, 2.0], [-0.5, 1.0]]).double()
MODELS = [
    dict(residual_rank=1),
    dict(dictionaries=['qv', 'k', 'o']),
    dict(depth=6, groups=[[0, 3, 4], [1, 2, 5]]),
    dict(projections='v'),
]


@pytest.mark.parametrize('args', MODELS, ids=str)
@pytest.mark.parametrize(
    ('change', 'invariant'), [(SCALED, ('scale', 'mixing')), (MIXED, ('mixing',))]
)
def test_nothing_changes_that_is_declared_invariant(noisy, args, change, invariant):
    model = noisy(**args)
    other = changed(model, change)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    after = dict(arrays(summary(other)))
    checked = set()
    for key, value in arrays(summary(model)):
        if QUANTITIES[key[1]].invariant in invariant:
            torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-5, msg=str(key))
            checked.add(key[1])
    assert len(checked) >= 12


@pytest.mark.parametrize(('change', 'variant'), [(SCALED, ('none',)), (MIXED, ('scale', 'none'))])
def test_what_is_declared_to_change_does(noisy, change, variant):
    before, after = (dict(arrays(summary(model))) for model in (noisy(), changed(noisy(), change)))
    for key, value in before.items():
        if QUANTITIES[key[1]].invariant in variant:
            assert not torch.allclose(after[key], value, rtol=1e-6), key


@pytest.mark.parametrize(
    ('change', 'invariant'), [(SCALED, ('scale', 'mixing')), (MIXED, ('mixing',))]
)
def test_comparisons_have_the_declared_invariance(noisy, change, invariant):
    first, second = projection_weights(noisy()), noisy(seed=1)
    before = compare(first, projection_weights(second))
    after = compare(first, projection_weights(changed(second, change)))
    for of, found in before.items():
        for name, value in found.items():
            if QUANTITIES[name].invariant in invariant:
                torch.testing.assert_close(after[of][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    'args', [{}, dict(groups=[[0, 1], [2, 3]], num_atoms=1), dict(projections='qk')]
)
def test_every_array_has_the_declared_axes(noisy, args):
    for (_, name), value in arrays(summary(noisy(**args))):
        assert value.dim() == len(QUANTITIES[name].axes), name
        assert value.isfinite().all(), name


@pytest.mark.parametrize(
    'args',
    [
        {},
        dict(groups=[[0, 1], [2, 3]], num_atoms=1),
        dict(projections='qk', residual_rank=2),
        dict(coefficients='mlp'),
        dict(dictionaries=['qv', 'k', 'o']),
    ],
    ids=str,
)
def test_parameters_are_those_that_are_counted_in_the_model(noisy, args):
    model = noisy(**args)
    counts = masa_vit.inspection.count_parameters(model)
    found = summary(model)
    assert found.attention_parameters == counts.attention
    assert found.dense_attention_parameters == counts.dense_attention


def test_dead_and_doubled_atoms_are_told(noisy):
    model = noisy()
    with torch.no_grad():
        model.banks['q'].atoms[1] = -2 * model.banks['q'].atoms[0]
        for block in model.blocks:
            block.attn.coef.k[0] = 0
    found = summary(model)
    assert found.doubled == dict(q=[(0, 1)], k=[], v=[], o=[])
    assert found.dead == dict(q=[], k=[0], v=[], o=[])


def test_sequential_sharing_shows_its_blocks(noisy):
    blocks = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    model = noisy(coefficients='frozen', coef=dict.fromkeys('qkvo', blocks))
    found = summary(model).projections['q']
    torch.testing.assert_close(found['shares'], blocks.double())
    assert found['effective_atoms'].tolist() == pytest.approx([1] * 4)
    same = blocks @ blocks.T == 1
    assert torch.equal(found['weight_similarity'] > 0.999, same)
    assert {*found['linkage'][0, :2].tolist()} | {*found['linkage'][1, :2].tolist()} == {0, 1, 2, 3}


def test_a_dense_model_has_similarities_and_no_atoms(noisy):
    found = summary(masa_vit.fold(noisy()))
    assert not found.dictionaries
    assert 'shares' not in found.projections['q']
    shared = summary(noisy()).projections['q']
    torch.testing.assert_close(
        found.projections['q']['weight_similarity'], shared['weight_similarity']
    )
    assert found.attention_parameters == found.dense_attention_parameters


def test_not_finite_weights_are_refused(noisy):
    model = noisy()
    with torch.no_grad():
        model.banks['k'].atoms[0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match="projection 'k' are not finite"):
        summary(model)


def test_a_model_is_like_itself_in_another_gauge(noisy):
    model = noisy()
    found = compare(projection_weights(model), projection_weights(changed(model, MIXED)))['q']
    assert found['other_cosine'].tolist() == pytest.approx([1] * 4)
    assert found['other_distance'].tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert found['subspace_angles'].tolist() == pytest.approx([0, 0], abs=1e-2)
    assert found['coefficient_angles'].tolist() == pytest.approx([0, 0], abs=1e-2)


def test_atoms_of_models_with_other_numbers_are_matched(noisy):
    small, large = noisy(num_atoms=2), noisy(seed=1, num_atoms=3)
    with torch.no_grad():
        large.banks['q'].atoms[2] = -small.banks['q'].atoms[0]
        large.banks['q'].atoms[0] = small.banks['q'].atoms[1]
    found = compare(projection_weights(small), projection_weights(large))['q']
    assert found['matched_atom'].tolist() == [2, 0]
    assert found['matched_cosine'].tolist() == pytest.approx([1, 1])
    contributions = summary(large).projections['q']['contributions']
    torch.testing.assert_close(found['matched_contributions'], contributions[:, [2, 0]])
    back = compare(projection_weights(large), projection_weights(small))['q']
    assert back['matched_atom'].tolist() == [1, -1, 0]


def test_what_cannot_be_compared_is_left_out(noisy):
    narrow = projection_weights(noisy())
    wide = projection_weights(noisy(embed_dim=48))
    assert set(compare(narrow, wide)['q']) == {'coefficient_angles'}
    assert set(compare(narrow, projection_weights(noisy(depth=3)))['q']) == {
        'subspace_angles', 'matched_atom', 'matched_cosine', 'matched_contributions'
    }  # fmt: skip


def test_a_layer_without_weight_is_a_layer_of_zeros(noisy):
    model = noisy(residual_rank=1)
    with torch.no_grad():
        for name, value in model.blocks[1].named_parameters():
            if '.coef.' in name or 'up_' in name:
                value.zero_()
    weights = projection_weights(model)
    found = summarize(weights)
    for (_, name), value in arrays(found):
        assert value.isfinite().all(), name
    assert found.projections['q']['residual_share'][1] == 0
    assert found.projections['q']['shares'][1].tolist() == [0, 0]
    assert compare(weights, projection_weights(noisy()))['q']['other_distance'].isfinite().all()


def test_an_atom_is_dead_only_if_no_projection_uses_it(noisy):
    model = noisy(dictionaries=['qv', 'k', 'o'])
    with torch.no_grad():
        for block in model.blocks:
            block.attn.coef.q[1] = 0
    weights = projection_weights(model)
    assert summarize(weights).dead['qv'] == []
    record = record_of(model, 0)
    assert summary_numbers(record)['q']['dead_atoms'] == 0
    use = history_quantities([record])['q']['atom_use'][0]
    torch.testing.assert_close(use, summarize(weights).dictionaries['qv']['atom_use'])
