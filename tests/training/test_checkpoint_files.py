"""The checkpoints of a run."""

import pytest
import torch

from masa_vit.training import checkpoint_files


def test_backend_defers_removals(tmp_path):
    backend = checkpoint_files.AtomicBackend()
    old, kept = tmp_path / 'old', tmp_path / 'kept'
    for path in (old, kept):
        backend.put(b'x', path)
    with backend.deferring() as removals:
        backend.remove(old)
        backend.remove(kept)
        assert old.exists()
        removals.remove(str(kept))
    assert not old.exists()
    assert kept.exists()

    def fail():
        with backend.deferring():
            backend.remove(kept)
            raise RuntimeError('boom')

    with pytest.raises(RuntimeError, match='boom'):
        fail()
    assert kept.exists()  # an error removes nothing


def test_read_checkpoint_refuses(tmp_path):
    good, cut, other = tmp_path / 'good.pth', tmp_path / 'cut.pth', tmp_path / 'other.pth'
    torch.save({'state_dict': {'a': torch.ones(1000)}, 'meta': {}}, good)
    assert checkpoint_files.read_checkpoint(good)['state_dict']['a'].sum() == 1000
    cut.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r'cut\.pth.*truncated.*in this folder: good\.pth'):
        checkpoint_files.read_checkpoint(cut)
    torch.save({'weights': {}}, other)
    with pytest.raises(ValueError, match=r'other\.pth.*no `state_dict`'):
        checkpoint_files.read_checkpoint(other)
    with pytest.raises(FileNotFoundError, match=r'none\.pth.*does not exist.*good\.pth'):
        checkpoint_files.read_checkpoint(tmp_path / 'none.pth')
