"""`masa-vit compress` as a user calls it."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch

from masa_vit.cli import main
from masa_vit.cli.compress import _logger, _progress
from masa_vit.compression import metric

MODEL = ['vit_tiny_patch16_224', '--model-args', 'img_size=32', 'patch_size=8', 'embed_dim=32']
MODEL += ['depth=4', 'num_heads=2', 'num_classes=3']
FILES = {'model.safetensors', 'config.json', 'report.json', 'report.png'}


def compress(*arguments: object) -> int:
    return main(['compress', *map(str, arguments)])


def test_the_defaults(tmp_path, images, capsys):
    out = tmp_path / 'out'
    assert compress(*MODEL, '--num-atoms', 2, '--out', out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / 'report.json').read_text())
    assert report['sharing'] == {'num_atoms': 2, 'projections': 'qkvo'}
    told = capsys.readouterr().out
    assert '16,384 -> 8,224 (-49.8%)' in told
    assert 'needs fine-tuning' in told
    model = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
    assert model(images).shape == (2, 3)
    assert model.banks['q'].num_atoms == 2


def test_everything_at_once_with_folders_of_images(tmp_path, image_root, capsys):
    out = tmp_path / 'out'
    arguments = ['--groups', 'kl', '--num-groups', 2, '--align', 'rotation']
    arguments += ['--weighting', 'fisher', '--num-atoms', 'auto', '--budget', 0.7]
    arguments += ['--residual-rank', 'energy', '--sweeps', 2]
    arguments += ['--calibration', image_root / 'train', '--val', image_root / 'val']
    arguments += ['--num-images', 16, '--batch-size', 5, '--num-val', 7]
    assert compress(*MODEL, '--out', out, *arguments) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['calibration_images'] == 16
    assert set(report['top1']) == {'before', 'without residual', 'after'}
    assert report['top1_images'] == dict.fromkeys(report['top1'], 7)
    assert len(report['sharing']['groups']) == 2
    counts = report['parameters']
    assert counts['compressed']['attention'] <= 0.7 * counts['dense']['attention']
    loaded = timm.create_model(f'local-dir:{out}', pretrained=True)
    assert sum(p.numel() for p in loaded.parameters()) == counts['compressed']['total']
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith('top-1:')]
    assert line.endswith('(7 images)')


@pytest.mark.parametrize('weighting', ['none', 'input', 'fisher'])
def test_second_moments_are_taken_once(tmp_path, image_root, monkeypatch, weighting):
    """By the fit, or, where it needs none, by the report."""
    taken = []

    class Counting(metric._Collector):
        def check(self, num_images):
            taken.append(num_images)
            super().check(num_images)

    monkeypatch.setattr(metric, '_Collector', Counting)
    arguments = ['--num-atoms', 2, '--weighting', weighting, '--calibration', image_root / 'train']
    assert compress(*MODEL, '--out', tmp_path / 'out', *arguments, '--num-images', 16) == 0
    assert taken == [16]
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert all(0 < row['output_error'] < 1 for row in report['rows'])


def test_a_search_tells_what_it_is_doing(tmp_path, capsys):
    arguments = ['--num-atoms', 'auto', '--budget', 0.7, '--residual-rank', 'energy']
    assert compress(*MODEL, '--out', tmp_path / 'out', *arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    steps = ['fitting the weights of Q, K, V, O in 4 layers']
    steps += [f'{number} atoms a dictionary: N % of the energy is lost' for number in (1, 2)]
    steps += ['fitting Gaussian matrices in the same way, for comparison']
    steps += ['writing and checking the model']
    assert [re.sub(r'[\d.]+ %', 'N %', line) for line in lines] == steps


def test_progress_is_shown_by_the_command_alone(capsys):
    _logger.info('before')
    with _progress():
        _logger.info('a step')
        _logger.warning('[mind]')
    _logger.info('after')
    assert capsys.readouterr().err == 'a step\n[mind]\n'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-atoms', '2.5'], 'num_atoms must be an integer >= 1, got 2.5'),
        (['--num-atoms', '4'], 'num_atoms=4 for 1 group'),
        (['--groups', 'uniform', '--num-groups', '5'], 'num_groups=5'),
        (['--groups', '[[0,1],[1,2,3]]'], 'groups'),
        (['--weighting', 'input'], "weighting='input' needs calibration images"),
        (['--weighting', 'input', '--calibration', 'ONE'], 'too few for 32'),
        (['--calibration', 'nowhere'], 'nowhere'),
        (['--num-val', '5'], '--num-val 5 needs validation images: --val FOLDER'),
        (['--val', 'nowhere'], "'nowhere' does not exist"),
        (['--val', 'DATA'], 'has 2 folders, and the model 3 classes'),
        (
            ['--budget', '0.05', '--num-atoms', 'auto', '--residual-rank', 'energy'],
            '1 atom(s) for each',
        ),
        (['--budget', '1e9', '--num-atoms', 'auto'], 'for the projections that share'),
        (['--budget', '0.5'], "needs num_atoms='auto'"),
        (['--num-atoms', 'auto'], 'needs a budget'),
        (['--budget', '-1', '--num-atoms', 'auto'], 'budget=-1.0 is not valid'),
        (['--residual-rank', '99'], 'integers from 0 to 32'),
        (['--sweeps', '0'], 'sweeps=0'),
        (['--projections', 'x'], "projections='x' is not valid"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, image_root, capsys, arguments, message):
    out = tmp_path / 'out'
    one = tmp_path / 'one'
    one.mkdir()
    next((image_root / 'train').rglob('*.png')).rename(one / 'a.png')
    arguments = [{'ONE': str(one), 'DATA': str(image_root)}.get(a, a) for a in arguments]
    assert compress(*MODEL, '--out', out, *(['--num-atoms', '2', *arguments])) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_output_that_exists_is_kept(tmp_path, capsys):
    out = tmp_path / 'out'
    assert compress(*MODEL, '--num-atoms', 2, '--out', out) == 0
    before = (out / 'model.safetensors').read_bytes()
    assert compress(*MODEL, '--num-atoms', 1, '--out', out) == 1
    assert '--force' in capsys.readouterr().err
    assert compress(*MODEL, '--num-atoms', 4, '--out', out, '--force') == 1
    assert (out / 'model.safetensors').read_bytes() == before
    assert compress(*MODEL, '--num-atoms', 1, '--out', out, '--force') == 0
    assert (out / 'model.safetensors').read_bytes() != before


def test_sources_that_cannot_be_compressed(tmp_path, capsys):
    masa = ['vit_tiny_masa_s2', *MODEL[1:]]
    assert compress(*masa, '--out', tmp_path / 'a') == 1
    assert 'shares its weights already' in capsys.readouterr().err
    assert compress('resnet18', '--out', tmp_path / 'a') == 1
    assert "takes timm's VisionTransformer itself" in capsys.readouterr().err
    assert compress(tmp_path / 'no_such', '--out', tmp_path / 'a') == 1
    assert 'does not exist' in capsys.readouterr().err
    weights = tmp_path / 'w.pth'
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=4)
    model.blocks[2].attn.qkv.weight.data[0, 0] = float('nan')
    torch.save(model.state_dict(), weights)
    small = ['vit_tiny_patch16_224', '--model-args', 'img_size=32', 'depth=4']
    assert compress(*small, '--checkpoint', weights, '--num-atoms', 2, '--out', tmp_path / 'a') == 1
    assert (
        'blocks.2.attn.qkv.weight has 1 of 110,592 values that are NaN' in capsys.readouterr().err
    )
    assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-val', 'x'], "--num-val: 'x' is not valid, expected an integer >= 1"),
        (['--batch-size', '0'], "--batch-size: '0' is not valid, expected an integer >= 1"),
    ],
)
def test_numbers_that_are_none(tmp_path, capsys, arguments, message):
    assert compress(*MODEL, '--out', tmp_path / 'out', *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.mkdtemp', refuse)  # root may write anywhere
    monkeypatch.setattr(
        'masa_vit.cli.compress.load_named', lambda *args, **kwargs: pytest.fail('loaded')
    )
    assert compress(*MODEL, '--num-atoms', 2, '--out', tmp_path / 'out') == 1
    assert 'cannot write into' in capsys.readouterr().err


@pytest.fixture
def tuned(tmp_path):
    """Write the `summary.json` of a training that started from a folder; both are returned."""
    out, work_dir = tmp_path / 'out', tmp_path / 'tuned'
    work_dir.mkdir()

    def write(**summary):
        (work_dir / 'summary.json').write_text(json.dumps(summary))
        return [out, '--tuned', work_dir]

    return out, write


def test_epochs_of_a_fine_tuning(tuned, capsys):
    out, write = tuned
    assert compress(*MODEL, '--num-atoms', 2, '--no-control', '--out', out) == 0
    before = (out / 'report.json').read_text()
    config = {'model': {'init_from': str(out)}}
    history = [
        {'epoch': 1, 'metrics': {}},
        {'epoch': 2, 'metrics': {'accuracy/top1': 51.5, 'accuracy/num_samples': 8}},
        {'epoch': 3},
    ]
    arguments = write(config=config, history=history)
    capsys.readouterr()
    assert compress(*arguments) == 1
    err = capsys.readouterr().err
    assert 'has no accuracy/top1 of epochs 1, 3, 10, but of 2' in err
    assert '--epochs' in err
    assert (out / 'report.json').read_text() == before

    assert compress(*arguments, '--epochs', 2, 3) == 0
    told = capsys.readouterr()
    assert 'no accuracy/top1 of epoch 3: left out' in told.err
    assert json.loads((out / 'report.json').read_text())['top1'] == {'epoch 2': 51.5}

    assert compress(*arguments, '--epochs', 2) == 0
    assert 'left out' not in capsys.readouterr().err

    arguments = write(config=config, history=[])
    assert compress(*arguments, '--epochs', 2) == 1
    assert 'has no accuracy/top1 of epoch 2, nor of any other' in capsys.readouterr().err

    for summary in ({'history': history}, {'config': {}, 'history': history}, {'config': config}):
        assert compress(*write(**summary)) == 1
        assert "summary.json' is not one that masa-vit train wrote" in capsys.readouterr().err
