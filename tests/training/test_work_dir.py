"""Work dirs: one training at a time, and the checkpoint to go on from."""

import json
import signal
import subprocess
import sys

import pytest

from masa_vit.training import work_dir

HOLD = """
import sys, time
from masa_vit.training.work_dir import locked
with locked(sys.argv[1]):
    print('locked', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `run`."""
    command = [sys.executable, '-c', HOLD, str(tmp_path / 'run')]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'locked\n'
    yield process
    process.kill()
    process.communicate()


def test_a_second_training_is_refused_while_the_first_lives(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(work_dir, '_PATIENCE', 0.1)
    refused = pytest.raises(ValueError, match=r'another training is running in .*run')
    with refused, work_dir.locked(tmp_path / 'run'):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with work_dir.locked(tmp_path / 'run'):
        pass


def test_files_that_a_killed_run_was_writing_are_removed(tmp_path):
    strays = ['.epoch_1.pth.ab12.tmp', '.last_checkpoint.x.tmp', '.summary.json.y.tmp']
    for name in [*strays, 'epoch_1.pth', '.notes.tmp']:
        (tmp_path / name).touch()
    with work_dir.locked(tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {'epoch_1.pth', '.notes.tmp', '.lock'}


def test_a_folder_that_was_made_is_removed_if_it_stays_empty(tmp_path):
    with pytest.raises(KeyError), work_dir.locked(tmp_path / 'new'):
        raise KeyError
    assert not (tmp_path / 'new').exists()
    with work_dir.locked(tmp_path / 'new'):
        (tmp_path / 'new' / 'log').touch()
    assert (tmp_path / 'new' / 'log').exists()


def test_find_last_checkpoint(tmp_path):
    assert work_dir.find_last_checkpoint(tmp_path / 'none') is None
    assert work_dir.find_last_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth\n')
    with pytest.raises(FileNotFoundError, match=r'epoch_2\.pth'):
        work_dir.find_last_checkpoint(tmp_path)
    (tmp_path / 'epoch_2.pth').touch()  # the folder was moved
    assert work_dir.find_last_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'


def test_a_run_killed_before_it_named_its_first_checkpoint(tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    assert work_dir.find_last_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'
    (tmp_path / 'epoch_2.pth').touch()
    with pytest.raises(ValueError, match=r'epoch_1\.pth, epoch_2\.pth.*--resume PATH'):
        work_dir.find_last_checkpoint(tmp_path)


def test_a_copied_work_dir_has_its_own_checkpoint(tmp_path):
    for name in ('original', 'copy'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'epoch_2.pth').touch()
    (tmp_path / 'copy' / 'last_checkpoint').write_text(str(tmp_path / 'original' / 'epoch_2.pth'))
    found = work_dir.find_last_checkpoint(tmp_path / 'copy')
    assert found == tmp_path / 'copy' / 'epoch_2.pth'


@pytest.mark.parametrize(
    ('name', 'content'),
    [('last_checkpoint', ''), ('summary.json', '{"finished": true}'), ('epoch_3.pth', '')],
)
def test_work_dir_with_another_run(tmp_path, name, content):
    work_dir.check_work_dir_free(tmp_path / 'not there yet')
    (tmp_path / '20260101_000000').mkdir()  # the log of a run that failed at once
    (tmp_path / '.lock').touch()
    work_dir.check_work_dir_free(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f'another run .{name}.*--resume'):
        work_dir.check_work_dir_free(tmp_path)


def test_work_dir_of_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / 'summary.json').write_text(json.dumps({'finished': False}))
    work_dir.check_work_dir_free(tmp_path)
    assert work_dir.find_last_checkpoint(tmp_path) is None


def test_work_dir_that_is_a_file(tmp_path):
    path = tmp_path / 'file'
    path.touch()
    with pytest.raises(ValueError, match='is a file'):
        work_dir.check_work_dir_free(path)
    with pytest.raises(ValueError, match='is a file'), work_dir.locked(path):
        pass
