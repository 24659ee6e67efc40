from __future__ import annotations

import argparse

import pytest

from masa_vit.utils.arguments import positive_int


@pytest.mark.parametrize(('text', 'number'), [('1', 1), ('1024', 1024)])
def test_positive_int(text, number):
    assert positive_int(text) == number


@pytest.mark.parametrize('text', ['0', '-3', '2.0', 'many', '', '²'])
def test_positive_int_refuses_all_else(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--number', type=positive_int)
    with pytest.raises(SystemExit):
        parser.parse_args([f'--number={text}'])
    assert f'--number: {text!r} is not valid, expected an integer >= 1' in capsys.readouterr().err
