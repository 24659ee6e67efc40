from __future__ import annotations

import pytest

from masa_vit.layers import bank_name, check_groups, parse_bank_name


@pytest.mark.parametrize(
    ('key', 'layers', 'name'),
    [
        ('q', [0, 1, 2, 3], 'q_0to3'),
        ('q', [11], 'q_11'),
        ('kv', [0, 5, 6, 7], 'kv_0_5to7'),
    ],
)
def test_names_of_banks(key, layers, name):
    assert bank_name(key, layers) == name
    assert parse_bank_name(name) == (key, tuple(layers))


@pytest.mark.parametrize('name', ['q', 'qv', 'wide'])
def test_banks_for_all_layers(name):
    assert parse_bank_name(name) == (name, None)


def test_groups_given_by_hand_are_put_in_order():
    assert check_groups([(3, 1), range(2, 3), [0]], 4) == [[0], [1, 3], [2]]


@pytest.mark.parametrize(
    'groups',
    [
        [[0, 1], [3]],
        [[0, 1, 2], [2, 3]],
        [[0, 1, 2, 3, 4]],
        [[-1, 0, 1, 2]],
        [[0, 1, 2, 3], []],
        [[0, 1.0, 2, 3]],
        [[False, 1, 2, 3]],
        [0, 1, 2, 3],
        3,
    ],
)
def test_groups_that_are_not_a_partition(groups):
    with pytest.raises(ValueError, match='each of the layers 0 to 3 in exactly one of them'):
        check_groups(groups, 4)
