from __future__ import annotations

import argparse
import csv

import pytest
import torch

from masa_vit.analysis import coefficients, inspect_atoms


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    inspect_atoms.add_arguments(parser)
    return inspect_atoms.run(parser.parse_args(list(argv)))


def test_table_csv_and_picture_of_a_checkpoint(small, tmp_path, capsys):
    model = small(coefficients='mlp')
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'last.pth')
    assert run(str(tmp_path / 'last.pth'), '--out', str(tmp_path / 'out')) == 0
    with (tmp_path / 'out/coefficients.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4 * 2
    coefs = coefficients(model)
    for row in rows:
        value = coefs[row['projection']][int(row['layer']), int(row['atom'])]
        assert float(row['coefficient']) == pytest.approx(value.item())
    assert (tmp_path / 'out/coefficients.png').read_bytes().startswith(b'\x89PNG')
    out = capsys.readouterr().out
    assert 'Q: layer by atom' in out
    assert f'{coefs["q"][0, 0].item():+.2f}' in out
    assert str(tmp_path / 'out/coefficients.csv') in out.replace('\n', '')


def test_name_of_a_model(tmp_path, capsys):
    assert run('vit_tiny_masa_qkv_s4', '--out', str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert 'V: layer by atom' in out
    assert 'O: layer by atom' not in out


@pytest.mark.parametrize(
    ('source', 'error', 'message'),
    [
        ('vit_tiny_patch16_224', ValueError, 'nothing is shared'),
        ('vit_tiny_massa', FileNotFoundError, 'neither a checkpoint nor a model'),
        ('nowhere.pth', FileNotFoundError, 'does not exist'),
    ],
)
def test_wrong_source(tmp_path, source, error, message):
    with pytest.raises(error, match=message):
        run(source, '--out', str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
