"""Configs are found, merged and checked."""

import importlib.util
import warnings

import pytest
from mmengine.config import Config

from masa_vit.training import load_config
from masa_vit.training.configs import explain_build_error
from masa_vit.utils.config_paths import config_root, resolve_config


def write(tmp_path, text):
    path = tmp_path / 'mine.py'
    path.write_text(text)
    return path


def test_toy_config_with_overrides(toy_config):
    cfg = load_config(
        toy_config, {'train_cfg.max_epochs': 7, 'custom_hooks.0.iteration': 2, 'compile': True}
    )
    assert cfg.train_cfg.max_epochs == 7
    assert cfg.custom_hooks[0].iteration == 2
    assert load_config(cfg, {'train_cfg.max_epochs': 8}).train_cfg.max_epochs == 8
    assert cfg.train_cfg.max_epochs == 7  # copied


def test_shipped_base(tmp_path):
    shipped = next(p for p in sorted((config_root() / 'cls').glob('*.py')))
    path = write(tmp_path, f"_base_ = 'masa_vit::cls/{shipped.name}'\nexperiment_name = 'mine'\n")
    cfg = Config.fromfile(str(path))  # mmengine's own entry finds it as well
    expected = Config.fromfile(str(shipped))
    assert cfg.model == expected.model
    assert cfg.experiment_name == 'mine'
    assert '_scope_' not in cfg.model
    assert resolve_config(f'masa_vit::cls/{shipped.name}') == shipped


def test_missing_config_names_similar_ones():
    shipped = next(p for p in sorted((config_root() / 'cls').glob('*digits.py')))
    with pytest.raises(FileNotFoundError, match=f'does not exist.*\n.*{shipped.name}'):
        resolve_config(f'configs/{shipped.stem}x.py')


@pytest.mark.parametrize(
    ('key', 'suggestion'),
    [
        ('trian_dataloader', 'train_dataloader'),
        ('optim_wraper', 'optim_wrapper'),
        ('param_schedulers', 'param_scheduler'),
        ('custom_hook', 'custom_hooks'),
        ('train_config', 'train_cfg'),
    ],
)
def test_mistyped_key(tmp_path, key, suggestion):
    path = write(tmp_path, f'{key} = dict()')
    with pytest.raises(ValueError, match=f"mine.py.*'{key}'; did you mean '{suggestion}'"):
        load_config(path)


def test_mistyped_override(toy_config):
    with pytest.raises(ValueError, match=r"optim_wraper.optimizer.lr.*'optim_wrapper'"):
        load_config(toy_config, {'optim_wraper.optimizer.lr': 1})
    with pytest.raises(ValueError, match=r"no key 'zebra'.*Its keys: .*train_cfg"):
        load_config(toy_config, {'zebra': 1})


def test_variables_of_the_user(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_config(write(tmp_path, '_anything = dict()\nmax_epochs = 3\nimage_size = (3, 3)'))
    with pytest.warns(UserWarning, match='zebra'):
        load_config(write(tmp_path, 'zebra = dict()'))


def test_customary_variables_of_mmdet(tmp_path):
    """What MMDetection's configs hold at their top level; a resemblance to our keys is none."""
    names = ('backend_args', 'albu_train_transforms', 'tta_model', 'tta_pipeline', 'conv_cfg')
    names += ('train_pipeline_stage2', 'load_pipeline', 'img_norm_cfg', 'dataset_type')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*has no effect')
        load_config(write(tmp_path, '\n'.join(f'{name} = []' for name in names)))


def test_import_that_fails(tmp_path, monkeypatch):
    """The reason is told, which mmengine hides."""
    (tmp_path / 'needs_more.py').write_text("raise ImportError('do this: pip install more')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path, "custom_imports = dict(imports=['needs_more'])")
    with pytest.raises(ImportError, match=r'mine\.py.*custom_imports: do this: pip install more$'):
        load_config(path)
    path = write(tmp_path, "custom_imports = dict(imports=['needs_less'])")
    with pytest.raises(ImportError, match=r"No module named 'needs_less'\. .*PYTHONPATH"):
        load_config(path)


def test_base_of_mmdet_without_mmdet(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec', lambda name, *a: None if name == 'mmdet' else find(name, *a)
    )
    path = write(tmp_path, "_base_ = 'mmdet::_base_/default_runtime.py'")
    with pytest.raises(ImportError, match=r'mmdet::_base_.*pip install "masa-vit\[det\]"'):
        load_config(path)


def test_config_with_a_python_error(tmp_path):
    with pytest.raises(ValueError, match=r'mine.py.*cannot be loaded.*NameError'):
        load_config(write(tmp_path, 'model = dict(depth=nothing)'))


def test_build_errors_name_the_place(toy_config):
    cfg = load_config(toy_config)
    cfg.optim_wrapper.clip_gard = {}
    error = TypeError("OptimWrapper.__init__() got an unexpected keyword argument 'clip_gard'")
    message = explain_build_error(error, cfg)
    assert 'optim_wrapper.clip_gard' in message
    assert "did you mean 'clip_grad'" in message
    cfg.train_dataloader.dataset.type = 'ToyDat'
    error = KeyError('ToyDat is not in the mmengine::dataset registry. Please check ...')
    message = explain_build_error(error, cfg)
    assert 'train_dataloader.dataset.type' in message
    assert 'Did you mean ToyData' in message
    assert explain_build_error(KeyError('something else'), cfg) is None


def test_overriding_a_variable_of_the_file_is_no_override(tmp_path):
    path = tmp_path / 'variable.py'
    path.write_text("data_root = 'a'\ntrain_dataloader = dict(dataset=dict(data_root=data_root))\n")
    with pytest.raises(ValueError, match=r'variable of the config file.*dataset\.data_root'):
        load_config(path, {'data_root': 'b'})
