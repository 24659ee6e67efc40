from __future__ import annotations

import errno
import os
import stat

import pytest

from masa_vit.utils import staging
from masa_vit.utils.staging import staged


def write(folder, text='new', names=('a', 'b'), force=False):
    with staged(folder, names, force) as stage:
        for name in names:
            (stage / name).write_text(text)


def test_files_appear_with_the_rights_of_new_files(tmp_path, contents):
    umask = os.umask(0o022)
    try:
        with staged(tmp_path / 'x' / 'y', ['a']) as stage:
            (stage / 'a').touch(0o600)
            (stage / 'scratch').touch()
            assert not (tmp_path / 'x').exists()
    finally:
        os.umask(umask)
    assert contents(tmp_path) == {'x/y/a': b''}
    assert (tmp_path / 'x' / 'y' / 'a').stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path, error):
    def fail():
        with staged(tmp_path / 'x', ['a']) as stage:
            (stage / 'a').touch()
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_replaces_only_when_asked_to_and_only_its_files(tmp_path, contents):
    write(tmp_path, 'old')
    (tmp_path / 'mine').write_text('mine')
    with pytest.raises(FileExistsError, match='--force'):
        write(tmp_path)
    assert contents(tmp_path) == {'a': b'old', 'b': b'old', 'mine': b'mine'}
    with pytest.raises(ZeroDivisionError), staged(tmp_path, ['a', 'b'], force=True) as stage:
        (stage / 'a').write_text(str(1 / 0))
    assert contents(tmp_path) == {'a': b'old', 'b': b'old', 'mine': b'mine'}
    write(tmp_path, force=True)
    assert contents(tmp_path) == {'a': b'new', 'b': b'new', 'mine': b'mine'}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, contents):
    def race():
        with staged(tmp_path, ['a']) as stage:
            (stage / 'a').write_text('new')
            (tmp_path / 'a').write_text('other')

    with pytest.raises(FileExistsError):
        race()
    assert contents(tmp_path) == {'a': b'other'}


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'x'):
        with pytest.raises(NotADirectoryError, match=r"file' is a file, expected a folder"):
            write(folder)
    (tmp_path / 'a').mkdir()
    with pytest.raises(IsADirectoryError, match=r"a' is a folder, expected a file"):
        write(tmp_path, force=True)

    def refuse(**kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.mkdtemp', refuse)  # root may write anywhere
    with pytest.raises(PermissionError, match=r'cannot write into .*: Permission denied'):
        write(tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    staging.write_atomically(path, 'one')
    staging.write_atomically(path, b'two')
    assert path.read_bytes() == b'two'
    assert [p.name for p in path.parent.iterdir()] == ['a.txt']
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    staging.write_atomically(path, 'old')

    def full_disk(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(staging.os, 'fsync', full_disk)
    with pytest.raises(OSError, match=r"cannot write '.*a\.txt' \(3 bytes.*No space.*make room"):
        staging.write_atomically(path, 'new')
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']
