from __future__ import annotations

import argparse
import json

import pytest

from masa_vit.analysis import benchmark


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return benchmark.run(parser.parse_args(list(argv)))


def test_a_pair_is_timed_and_written(tmp_path, capsys):
    path = tmp_path / 'result.json'
    options = ['--batch-size', '1', '--img-size', '32', '--pairs', '2', '--device', 'cpu']
    assert run('vit_tiny_masa_s4', *options, '--memory', '--json', str(path)) == 0
    result = json.loads(path.read_text())
    ours, others = result['peak_bytes']
    assert min(ours, others) > 2**26, 'less than torch itself needs'
    assert result['against'] == 'vit_tiny_patch16_224'
    assert set(result['measurements']) == {'training step', 'evaluation', 'evaluation after fold'}
    for row in result['measurements'].values():
        assert len(row['ratios']) == 2
        assert all(
            ratio == a / b
            for ratio, a, b in zip(row['ratios'], *row['seconds'].values(), strict=True)
        )
    out = capsys.readouterr().out
    assert 'evaluation after fold' in out
    assert f'{ours / others:.3f}' in out


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['vit_massa'], 'no model that timm knows'),
        (['vit_tiny_masa_s4', '--pairs', '0'], 'must be'),
    ],
)
def test_wrong_arguments(argv, message):
    with pytest.raises(ValueError, match=message):
        run(*argv)
