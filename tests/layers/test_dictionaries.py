from __future__ import annotations

import pytest

from masa_vit.layers import bank_name, parse_bank_name


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
