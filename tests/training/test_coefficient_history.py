"""CoefficientHook: what a training run records of its atoms, also when it is resumed."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from masa_vit import inspection
from masa_vit.training import train
from masa_vit.training.hooks import CoefficientHook

NAMES = ['effective_atoms', 'dead_atoms', 'doubled_atoms', 'layer_similarity']


def config_of(model_name='vit_tiny_masa_s2', **changes):
    config = Config.fromfile(str(Path(toy.__file__).with_name('toy_config.py')))
    model = dict(_delete_=True, type='ToyViT', model_name=model_name, depth=4)
    hooks = [dict(type='CoefficientHook', interval=2)]
    keep_all = {'default_hooks.checkpoint.max_keep_ckpts': -1}
    # copied, for it takes `_delete_` out of what it is given
    config.merge_from_dict(
        copy.deepcopy({'model': model, 'custom_hooks': hooks, **keep_all, **changes})
    )
    vars(config)['_filename'] = None
    return config


def files_of(work_dir):
    return {path.name for path in (work_dir / 'atoms').iterdir()}


def assert_same_history(work_dir, other):
    assert files_of(work_dir) == files_of(other)
    records = [inspection.read_history(folder) for folder in (work_dir, other)]
    for record, expected in zip(*records, strict=True):
        for name in 'qkvo':
            assert torch.equal(record.coef[name], expected.coef[name])
            assert torch.equal(record.gram[name], expected.gram[name])


def names(*epochs):
    return {f'epoch_{epoch}.safetensors' for epoch in epochs}


def state_of(work_dir, epoch):
    path = work_dir / f'epoch_{epoch}.pth'
    return torch.load(path, weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run') / 'a'
    return folder, train(config_of(), folder, seed=1)


def test_records_of_all_epochs_are_those_of_the_checkpoints(run):
    folder, _ = run
    assert files_of(folder) == names(0, 1, 2, 3)
    history = inspection.read_history(folder)
    assert [record.epoch for record in history] == [0, 1, 2, 3]
    for record in history[1:]:
        expected = inspection.record_of(state_of(folder, record.epoch), record.epoch)
        for name in 'qkvo':
            assert torch.equal(record.coef[name], expected.coef[name])
            assert torch.equal(record.gram[name], expected.gram[name])
    assert not torch.equal(history[0].coef['q'], history[3].coef['q'])


def test_tensorboard_holds_the_numbers_of_the_records(run):
    folder, summary = run
    events = EventAccumulator(summary['tensorboard'], size_guidance={'histograms': 0})  # 0: all
    events.Reload()
    numbers = [inspection.summary_numbers(record) for record in inspection.read_history(folder)]
    for projection in 'qkvo':
        for name in NAMES:
            scalars = events.Scalars(f'{name}/{projection}')
            assert [event.step for event in scalars] == [0, 1, 2, 3]
            expected = [of_epoch[projection][name] for of_epoch in numbers]
            assert [event.value for event in scalars] == pytest.approx(expected, abs=1e-6)
        histograms = events.Histograms(f'coefficients/{projection}')
        assert [event.step for event in histograms] == [0, 2, 3]
    assert [event.step for event in events.Images('coefficients')] == [0, 2, 3]


def test_a_resumed_run_ends_with_the_same_records(run, tmp_path):
    whole, _ = run
    half = tmp_path / 'half'
    shutil.copytree(whole, half)
    for name in ('epoch_2.pth', 'epoch_3.pth', 'summary.json', 'last_checkpoint'):
        (half / name).unlink()
    (half / 'last_checkpoint').write_text(str(half / 'epoch_1.pth'))
    # a later epoch than the whole run has: removed, for it cannot be of the run that goes on
    (half / 'atoms' / 'epoch_4.safetensors').write_bytes(b'')
    (half / 'atoms' / 'epoch_2.safetensors').write_bytes(b'torn')
    train(config_of(), half, resume='auto')
    assert_same_history(half, whole)


def test_average_of_the_weights_is_not_what_is_recorded(tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.1), dict(type='CoefficientHook')]
    train(config_of(custom_hooks=hooks), tmp_path, seed=1)
    checkpoint = torch.load(tmp_path / 'epoch_3.pth', weights_only=True)
    record = inspection.read_history(tmp_path)[-1]
    trained = {k.removeprefix('module.'): v for k, v in checkpoint['ema_state_dict'].items()}
    assert torch.equal(record.coef['q'], inspection.coefficients(trained)['q'])
    assert not torch.equal(record.coef['q'], inspection.coefficients(checkpoint['state_dict'])['q'])


@pytest.mark.parametrize('dense', [False, True])
def test_leftovers_of_a_run_that_died_early_do_not_block_nor_mix(run, small, tmp_path, dense):
    for epoch in (0, 7):
        inspection.write_record(inspection.record_of(small(num_atoms=3), epoch), tmp_path / 'atoms')
    model = 'vit_tiny_patch16_224' if dense else 'vit_tiny_masa_s2'
    train(config_of(model, **{'train_cfg.max_epochs': 1}), tmp_path, seed=1)
    assert files_of(tmp_path) == (set() if dense else names(0, 1))


def test_nothing_of_a_dense_model(tmp_path):
    summary = train(config_of('vit_tiny_patch16_224', **{'train_cfg.max_epochs': 1}), tmp_path)
    assert not (tmp_path / 'atoms').exists()
    events = EventAccumulator(summary['tensorboard'])
    events.Reload()
    assert not any(tag.startswith(tuple(NAMES)) for tag in events.Tags()['scalars'])


def test_loop_by_iterations_records_its_start_and_end(tmp_path):
    changes = {
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=9, val_interval=3),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 3,
        'param_scheduler': None,
        'log_processor': dict(by_epoch=False),
    }
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    train(config_of(**changes), whole, seed=1)
    assert files_of(whole) == names(0, 1)
    shutil.copytree(whole, again)
    for name in ('iter_9.pth', 'summary.json'):
        (again / name).unlink()
    (again / 'last_checkpoint').write_text(str(again / 'iter_6.pth'))
    train(config_of(**changes), again, resume='auto')
    assert_same_history(again, whole)
    shutil.rmtree(whole / 'atoms')
    assert [record.epoch for record in inspection.read_history(whole)] == [3, 6, 9]


class Logger:
    def __init__(self):
        self.lines = []

    def info(self, message):
        self.lines.append(message)

    warning = info


def runner_of(model, work_dir, epoch=0):
    visualizer = SimpleNamespace(_vis_backends={}, add_image=lambda *args: None)
    return SimpleNamespace(
        model=model, work_dir=str(work_dir), epoch=epoch, iter=epoch, max_epochs=9,
        _max_epochs=9, logger=Logger(), visualizer=visualizer,
    )  # fmt: skip


@pytest.mark.parametrize('kind', ['fsdp', 'fsdp2'])
def test_sharded_parameters_are_left_alone(small, tmp_path, free_port, kind):
    from mmengine.model import MMFullyShardedDataParallel
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{free_port}', rank=0, world_size=1
    )
    try:
        model = small()
        if kind == 'fsdp':
            model = MMFullyShardedDataParallel(model, device_id=torch.device('cpu'))
        else:
            fully_shard(model, mesh=torch.distributed.init_device_mesh('cpu', (1,)))
        hook, runner = CoefficientHook(), runner_of(model, tmp_path)
        hook.before_train(runner)
        hook.after_train_epoch(runner)
    finally:
        torch.distributed.destroy_process_group()
    assert any('sharded' in line for line in runner.logger.lines)
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_is_recorded_until_then(small, tmp_path):
    model = small()
    hook, runner = CoefficientHook(), runner_of(nn.Sequential(model), tmp_path)
    hook.before_train(runner)
    with torch.no_grad():
        model.banks['q'].atoms[0, 0, 0] = float('inf')
    hook.after_train_epoch(runner)
    assert any('diverged' in line for line in runner.logger.lines)
    assert files_of(tmp_path) == names(0)


def test_interval():
    with pytest.raises(ValueError, match='interval is 0'):
        CoefficientHook(interval=0)
