"""compare(): trainings side by side, resumed where they stopped."""

import json
import shutil

import pytest

from masa_vit.training import train
from masa_vit.training.comparison import _half_width, compare

OPTIONS = {'train_cfg.max_epochs': 1}


@pytest.fixture
def configs(tmp_path, toy_config):
    paths = [tmp_path / 'shared.py', tmp_path / 'plain.py']
    for path, name in zip(paths, ('vit_tiny_masa_s2', 'vit_tiny_patch16_224'), strict=True):
        model = f"dict(_delete_=True, type='ToyViT', model_name='{name}', depth=4)"
        path.write_text(f"_base_ = '{toy_config}'\nmodel = {model}\n")
    return paths


def test_compare_and_resume(configs, tmp_path, capsys):
    work_dir = tmp_path / 'pair'
    rows = compare(configs, work_dir, seed=1, cfg_options=OPTIONS)
    out = capsys.readouterr().out
    caveat = 'One run each, one seed: a small difference ranks nothing'
    assert caveat in out
    assert [row['name'] for row in rows] == ['shared', 'plain']
    shared, plain = rows
    assert shared['attention_parameters'] < plain['attention_parameters']
    assert shared['coefficients'] == str(work_dir / 'shared' / 'coefficients.png')
    assert (work_dir / 'shared' / 'coefficients.png').read_bytes().startswith(b'\x89PNG')
    assert plain['coefficients'] is None
    for row in rows:
        for key in ('checkpoint', 'tensorboard'):
            assert row[key] in out.replace('\n', '')
    assert json.loads((work_dir / 'compare.json').read_text()) == rows
    assert caveat in (work_dir / 'compare.md').read_text()

    with pytest.raises(ValueError, match='holds another run'):
        compare(configs, work_dir, cfg_options=OPTIONS)
    options = {**OPTIONS, 'train_dataloader.batch_size': 2}
    with pytest.raises(ValueError, match=r'another recipe \(train_dataloader differs\)'):
        compare(configs, work_dir, resume=True, cfg_options=options)
    # one finished, one that never began
    shutil.rmtree(work_dir / 'plain')
    before = (work_dir / 'shared' / 'epoch_1.pth').stat().st_mtime_ns
    again = compare(configs, work_dir, resume=True, seed=1, cfg_options=OPTIONS)
    assert (work_dir / 'shared' / 'epoch_1.pth').stat().st_mtime_ns == before
    assert [row['value'] for row in again] == [row['value'] for row in rows]


def test_mistakes_are_found_before_the_first_training(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        'masa_vit.training.comparison.train', lambda *_, **__: pytest.fail('trained')
    )
    with pytest.raises(ValueError, match='--resume needs the --work-dir'):
        compare(configs, resume=True)
    with pytest.raises(ValueError, match='file names in common'):
        compare([configs[0], configs[0]], tmp_path / 'pair')
    with pytest.raises(FileNotFoundError, match='absent'):
        compare([configs[0], 'absent.py'], tmp_path / 'pair')
    assert callable(train)


def test_half_width():
    assert _half_width('accuracy/top1', 96.0, 360) == pytest.approx(2.02, abs=0.01)
    assert _half_width('error', 96.0, 360) is None
    assert _half_width('accuracy/top1', 96.0, None) is None
