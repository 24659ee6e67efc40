from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from masa_vit.export import export_hub
from masa_vit.models.sources import load_source


@pytest.fixture
def folder(small, tmp_path):
    export_hub(small(), tmp_path / 'model')
    return tmp_path / 'model'


def test_a_name_with_weights(small, images, tmp_path, args):
    model = small().eval()
    save_file(model.state_dict(), tmp_path / 'a.safetensors')
    state = {f'module.{key}': value for key, value in model.state_dict().items()}
    torch.save({'epoch': 3, 'state_dict': state}, tmp_path / 'a.pth')
    for name in ('a.safetensors', 'a.pth'):
        loaded = load_source(
            'vit_tiny_masa_s2', checkpoint=str(tmp_path / name), model_args=args
        ).eval()
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)


def test_a_folder(folder, small, images):
    model = load_source(str(folder)).eval()
    torch.manual_seed(0)
    assert model(images).shape == (2, 5)
    assert model._model_args['num_atoms'] == 2


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_classes': 3}, 'num_classes'),
        ({'num_atoms': 3}, 'S=2 atoms'),
        ({'depth': 3}, 'does not match'),
        ({'img_size': 64}, r'resized \(1\): pos_embed'),
    ],
)
def test_a_checkpoint_that_does_not_fit(small, tmp_path, args, kwargs, message):
    save_file(small().state_dict(), tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match=message):
        load_source(
            'vit_tiny_masa_s2',
            checkpoint=str(tmp_path / 'a.safetensors'),
            model_args={**args, **kwargs},
        )


def test_no_such_source(tmp_path, folder, args):
    for source, error, message in [
        ('vit_tiny_massa_s2', ValueError, 'unknown model_name.*closest names: vit_tiny_masa_s2'),
        (str(tmp_path / 'none'), FileNotFoundError, 'does not exist'),
        (str(tmp_path), FileNotFoundError, r'has no config\.json'),
        (str(folder / 'model.safetensors'), ValueError, r'does not name its model.*--checkpoint'),
        ('my_config.py', ValueError, 'needs its weights: --checkpoint'),
    ]:
        with pytest.raises(error, match=message):
            load_source(source)
    with pytest.raises(FileNotFoundError, match=r"none\.pth' does not exist"):
        load_source('vit_tiny_masa_s2', checkpoint='none.pth', model_args=args)


def test_no_pretrained_weights(args):
    with pytest.raises(ValueError, match="no weights for 'vit_tiny_masa_s2'"):
        load_source('vit_tiny_masa_s2', pretrained=True, model_args=args)


def test_options_that_do_not_go_together(folder):
    for source, options, message in [
        ('vit_tiny_masa_s2', {'checkpoint': 'a.pth', 'pretrained': True}, 'choose one'),
        (str(folder), {'pretrained': True}, 'a folder, which has its own: --pretrained is for'),
        (str(folder), {'model_args': {'depth': 3}}, '--model-args is for'),
        ('a.py', {'checkpoint': 'a.pth', 'pretrained': True}, 'a config: --pretrained is for'),
    ]:
        with pytest.raises(ValueError, match=message):
            load_source(source, **options)


def test_broken_folders(folder):
    config = json.loads((folder / 'config.json').read_text())
    for text, message in [
        ('{', 'is not JSON'),
        ('[]', "has no 'architecture'"),
        (json.dumps({**config, 'architecture': 'vit_no'}), "holds a 'vit_no', which timm"),
        (
            json.dumps({**config, 'model_args': {**config['model_args'], 'depth': 3}}),
            'config.json has depth=3, model.safetensors 4 blocks',
        ),
    ]:
        (folder / 'config.json').write_text(text)
        with pytest.raises(ValueError, match=message):
            load_source(str(folder))
    (folder / 'config.json').write_text(json.dumps(config))
    weights = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(weights[:1000])
    with pytest.raises(ValueError, match='cannot be read'):
        load_source(str(folder))
    (folder / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='has no weights; expected one of'):
        load_source(str(folder))
