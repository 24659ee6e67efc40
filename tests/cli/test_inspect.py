"""`masa-vit inspect` as users call it."""

import argparse
import base64
import csv
import io
import json
import os

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import masa_vit.export
from masa_vit.cli import inspect as command
from masa_vit.cli import main
from masa_vit.inspection import (
    ablate_atoms,
    attention_distance,
    attention_maps,
    layer_cka,
    projection_weights,
    record_of,
    summarize,
    write_record,
)
from masa_vit.inspection.image_analysis import sample_images
from masa_vit.inspection.tables import COLUMNS
from masa_vit.utils.images import timm_transform


@pytest.fixture
def checkpoint(noisy, tmp_path):
    path = tmp_path / 'last.pth'
    torch.save({'state_dict': noisy().state_dict()}, path)
    return path


@pytest.fixture
def folder(noisy, tmp_path):
    """A small model in timm's Hub layout, which can run."""
    args = dict(num_atoms=2, **dict(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2))
    model = noisy('vit_tiny_masa_s4', **args)
    masa_vit.export.export_hub(model, tmp_path / 'model')
    return tmp_path / 'model'


def inspect(*argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(arg) for arg in argv]))


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


def test_report_of_a_checkpoint_in_all_formats(noisy, checkpoint, tmp_path, capsys):
    out = tmp_path / 'out'
    assert inspect(checkpoint, '--out', out, '--format', 'table,csv,json,png,svg,html') == 0
    expected = summarize(projection_weights(noisy().state_dict()))
    document = read(out / 'report.json')
    (model,) = document['models'].values()
    for name, arrays in expected.projections.items():
        assert model['projections'][name] == {key: a.tolist() for key, a in arrays.items()}
    with (out / 'report.csv').open(newline='') as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    printed = capsys.readouterr().out
    assert 'Q: C, layer by atom' in printed
    pictures = ('coefficients', 'shares', 'atoms', 'similarity', 'ranks', 'spectra')
    names = {f'{picture}.{kind}' for picture in pictures for kind in ('png', 'svg')}
    assert {path.name for path in out.iterdir()} == names | {
        'report.csv',
        'report.json',
        'report.html',
    }
    assert str(out / 'report.html') in printed


def test_name_of_a_model_is_enough(tmp_path, capsys):
    out = str(tmp_path / 'out')
    assert main(['inspect', 'vit_tiny_masa_qkv_s4', '--out', out, '--format', 'table']) == 0
    out = capsys.readouterr().out
    assert 'V: C, layer by atom' in out
    assert 'O: C, layer by atom' not in out  # O does not share
    assert not (tmp_path / 'out').exists() or not [*(tmp_path / 'out').iterdir()]


def test_a_dense_model_is_told_to_share_nothing_and_is_shown(tmp_path, capsys):
    assert inspect('vit_tiny_patch16_224', '--out', tmp_path, '--format', 'table,json') == 0
    assert 'Nothing is shared in this model' in capsys.readouterr().out
    document = read(tmp_path / 'report.json')
    assert (
        len(document['models']['vit_tiny_patch16_224']['projections']['q']['weight_similarity'])
        == 12
    )


def test_models_are_compared_with_the_first_or_with_another(noisy, checkpoint, tmp_path):
    torch.save({'state_dict': noisy(seed=1, num_atoms=3).state_dict()}, tmp_path / 'b.pth')
    inspect(checkpoint, tmp_path / 'b.pth', '--out', tmp_path / 'out', '--format', 'json')
    (comparison,) = read(tmp_path / 'out/report.json')['comparisons']
    assert (comparison['first'][-8:], comparison['second'][-5:]) == ('last.pth', 'b.pth')
    inspect(
        checkpoint, '--against', tmp_path / 'b.pth', '--out', tmp_path / 'c', '--format', 'json'
    )
    (comparison,) = read(tmp_path / 'c/report.json')['comparisons']
    assert comparison['second'][-5:] == 'b.pth'
    assert len(comparison['projections']['q']['matched_atom']) == 2


def test_the_same_model_twice_has_two_names(checkpoint, tmp_path):
    inspect(checkpoint, checkpoint, '--out', tmp_path / 'out', '--format', 'json')
    document = read(tmp_path / 'out/report.json')
    assert [name[-3:] for name in document['models']] == ['(1)', '(2)']
    angles = document['comparisons'][0]['projections']['q']['subspace_angles']
    assert angles == pytest.approx([0, 0], abs=1e-3)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in 'abcde':
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'photos' / name / f'{index}.png')
    return tmp_path / 'photos'


def test_images_show_attention_cka_and_what_atoms_do(folder, photos, tmp_path):
    out = tmp_path / 'out'
    options = ['--num-images', 8, '--num-ablated', 4, '--format', 'json,png']
    assert inspect(folder, '--out', out, '--images', photos, *options) == 0
    (model,) = read(out / 'report.json')['models'].values()
    assert np.shape(model['images']['class_attention']) == (4, 4, 2, 4, 4)
    assert np.shape(model['images']['attention_distance']) == (4, 2)
    assert np.shape(model['images']['cka']) == (4, 4)
    (pictures,) = read(out / 'report.json')['pictures'].values()
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(',')[2]))) as picture:
        assert picture.size == (32, 32)
    arrays = model['projections']['v']
    assert np.shape(arrays['ablation_kl']) == (4, 2)
    assert np.shape(arrays['ablation_accuracy_everywhere']) == (2,)  # the folders are the classes
    assert min(map(min, arrays['ablation_kl'])) > 0
    assert {'attention.png', 'activations.png', 'ablation.png'} <= {p.name for p in out.iterdir()}


def test_numbers_on_images_are_those_of_the_analysis(folder, photos, tmp_path):
    options = ['--num-images', 6, '--num-ablated', 3, '--batch-size', 4, '--format', 'json']
    inspect(folder, '--out', tmp_path / 'out', '--images', photos, *options)
    (found,) = read(tmp_path / 'out/report.json')['models'].values()
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    sample = sample_images(str(photos), 6, 5)
    assert sample.classes == ['abcde'.index(path.parent.name) for path in sample.paths]
    images = torch.stack([*map(timm_transform(model), sample.paths)])
    batches = images.split(4)
    assert found['images']['attention_distance'] == attention_distance(model, batches).tolist()
    assert found['images']['cka'] == layer_cka(model, batches).tolist()
    maps = attention_maps(model, images[:4])[:, :, :, 0, 1:].unflatten(-1, (4, 4))
    shown = torch.tensor(found['images']['class_attention'])
    torch.testing.assert_close(shown, maps.movedim(0, 1))  # the command runs one image at a time
    ablation = ablate_atoms(model, [(images[:3], torch.tensor(sample.classes[:3]))])
    for name, arrays in found['projections'].items():
        assert arrays['ablation_kl'] == ablation.by_layer[name].kl.tolist()
        assert arrays['ablation_accuracy'] == ablation.by_layer[name].accuracy.tolist()
        assert arrays['ablation_logits_everywhere'] == ablation.everywhere[name].distance.tolist()
    numbers = [found['images'][key] for key in ('num_images', 'num_ablated', 'accuracy')]
    assert numbers == [6, 3, pytest.approx(ablation.accuracy)]


def test_images_without_classes_have_no_accuracy(folder, photos, tmp_path):
    options = ['--num-images', 2, '--num-ablated', 2, '--format', 'json']
    inspect(folder, '--out', tmp_path / 'out', '--images', photos / 'a', *options)
    (model,) = read(tmp_path / 'out/report.json')['models'].values()
    assert 'ablation_kl' in model['projections']['q']
    assert 'ablation_accuracy' not in model['projections']['q']
    (note,) = read(tmp_path / 'out/report.json')['notes'].values()
    assert 'not one folder for each of the 5 classes' in note


def test_the_history_of_a_run(noisy, tmp_path):
    for epoch in range(3):
        write_record(record_of(noisy(seed=epoch), epoch), tmp_path / 'run/atoms')
    torch.save({'state_dict': noisy(seed=2).state_dict()}, tmp_path / 'run/epoch_2.pth')
    (tmp_path / 'run/last_checkpoint').write_text('/moved/run/epoch_2.pth')
    out = tmp_path / 'out'
    assert inspect('--run', tmp_path / 'run', '--out', out, '--format', 'json,png,html') == 0
    document = read(out / 'report.json')
    assert document['history']['epochs'] == [0, 1, 2]
    (model,) = document['models'].values()
    last = document['history']['projections']['k']['coefficients'][2]
    assert last == model['projections']['k']['coefficients']
    with Image.open(out / 'history.gif') as animation:
        assert animation.n_frames == 3
    assert (out / 'history.png').is_file()


def test_a_run_without_a_checkpoint_has_its_history(noisy, tmp_path):
    for epoch in range(2):
        write_record(record_of(noisy(seed=epoch), epoch), tmp_path / 'run/atoms')
    out = tmp_path / 'out'
    assert inspect('--run', tmp_path / 'run', '--out', out, '--format', 'table,json,html') == 0
    document = read(out / 'report.json')
    assert document['models'] == {}
    assert document['history']['epochs'] == [0, 1]
    (tmp_path / 'run/atoms/epoch_1.safetensors').unlink()
    with pytest.raises(ValueError, match='one moment only'):
        inspect('--run', tmp_path / 'run', '--out', tmp_path / 'b')


def test_the_model_of_a_run_can_be_compared(noisy, checkpoint, tmp_path):
    write_record(record_of(noisy(seed=2), 2), tmp_path / 'run/atoms')
    torch.save({'state_dict': noisy(seed=2).state_dict()}, tmp_path / 'run/epoch_2.pth')
    (tmp_path / 'run/last_checkpoint').write_text('epoch_2.pth')
    run = ['--run', tmp_path / 'run', '--format', 'json']
    inspect(*run, '--against', checkpoint, '--out', tmp_path / 'out')
    (comparison,) = read(tmp_path / 'out/report.json')['comparisons']
    assert (comparison['first'], comparison['second'][-8:]) == ('run/epoch_2.pth', 'last.pth')
    with pytest.raises(ValueError, match='nothing to compare with --against'):
        inspect('--against', checkpoint, '--out', tmp_path / 'b')


def test_a_script_beside_a_checkpoint_is_not_run(noisy, tmp_path):
    torch.save({'state_dict': noisy().state_dict()}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    (tmp_path / 'config.py').write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nmodel = dict()\n")
    argv = ['inspect', str(tmp_path), '--out', str(tmp_path / 'out'), '--format', 'json']
    assert main(argv) == 0
    assert not (tmp_path / 'ran').exists()


def test_the_work_dir_of_a_detector_shows_its_weights(noisy, photos, tmp_path):
    state = {f'backbone.{key}': value for key, value in noisy().state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    config = tmp_path / 'mask_rcnn.py'
    config.write_text("default_scope = 'mmdet'\nmodel = dict(type='MaskRCNN', backbone=dict())\n")
    argv = ['inspect', str(tmp_path), '--format', 'json', '--out']
    assert main([*argv, str(tmp_path / 'out')]) == 0
    (model,) = read(tmp_path / 'out/report.json')['models'].values()
    assert model['num_heads'] is None
    assert main([*argv, str(tmp_path / 'b'), '--images', str(photos)]) == 1


def test_models_of_other_than_rgb_images_are_refused(noisy, photos, tmp_path):
    args = dict(num_atoms=2, img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2)
    masa_vit.export.export_hub(noisy('vit_tiny_masa_s4', in_chans=1, **args), tmp_path / 'grey')
    with pytest.raises(ValueError, match='takes images of 1 channels'):
        inspect(tmp_path / 'grey', '--out', tmp_path / 'out', '--images', photos)


def test_errors_name_the_source(noisy, checkpoint, tmp_path):
    state = noisy().state_dict()
    state['blocks.attn_banks.q.atoms'][0, 0, 0] = float('nan')
    torch.save({'state_dict': state}, tmp_path / 'nan.pth')
    with pytest.raises(ValueError, match=r'nan\.pth.*q\.atoms has 1 of 2,048 values that are NaN'):
        inspect(checkpoint, tmp_path / 'nan.pth', '--out', tmp_path / 'out')
    with pytest.raises(ValueError, match='resnet18: there are no attention projections'):
        inspect('resnet18', '--out', tmp_path / 'out')


def test_names_are_no_markup(noisy, tmp_path, capsys):
    (tmp_path / '[bold]').mkdir()
    torch.save({'state_dict': noisy().state_dict()}, tmp_path / '[bold]/a.pth')
    inspect(tmp_path / '[bold]/a.pth', '--out', tmp_path / 'out', '--format', 'table')
    assert '[bold]/a.pth' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('source', 'error', 'message'),
    [
        ('vit_tiny_massa', ValueError, 'vit_tiny_massa'),
        ('nowhere.pth', FileNotFoundError, 'does not exist'),
        ('no/where', FileNotFoundError, 'does not exist'),
        ('masa_vit::cls/a.py', ValueError, 'is a config, not a model'),
        ('.', FileNotFoundError, 'neither last_checkpoint'),
    ],
)
def test_wrong_source(tmp_path, monkeypatch, source, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        inspect(source, '--out', 'out')
    assert not (tmp_path / 'out').exists()


def test_images_need_a_model_that_the_checkpoint_does_not_name(checkpoint, photos, tmp_path):
    with pytest.raises(ValueError, match=r'--images needs a model.*--config CONFIG'):
        inspect(checkpoint, '--out', tmp_path / 'out', '--images', photos)


def test_a_folder_without_images(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no image at'):
        inspect('a_name_that_is_not_looked_at', '--out', tmp_path, '--images', tmp_path / 'empty')


def test_nothing_to_inspect(tmp_path):
    with pytest.raises(ValueError, match='nothing to inspect'):
        inspect('--out', tmp_path)


def test_a_report_is_not_overwritten_unless_asked_to(checkpoint, tmp_path):
    argv = [checkpoint, '--out', tmp_path / 'out', '--format', 'png']
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'coefficients.png').touch()
    with pytest.raises(FileExistsError, match=r'coefficients\.png.*--force'):
        inspect('a_name_that_is_not_looked_at', *argv[1:])
    assert inspect(*argv, '--force') == 0


def test_an_output_that_cannot_be_written_is_told_before_the_work(checkpoint, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError, match='file'):
        inspect(checkpoint, '--out', tmp_path / 'file/out')
    if os.geteuid():  # root may write anywhere
        (tmp_path / 'closed').mkdir(mode=0o500)
        with pytest.raises(PermissionError, match='cannot write'):
            inspect(checkpoint, '--out', tmp_path / 'closed')


def test_an_unknown_format_is_refused_with_the_known_ones(capsys):
    assert main(['inspect', 'vit_tiny_masa_s4', '--out', 'x', '--format', 'png,bmp']) == 2
    assert "unknown format 'bmp': expected some of table,csv,json,png,pdf,svg,html" in (
        capsys.readouterr().err
    )
