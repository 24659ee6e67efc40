"""Files with weights: checked, loaded as data, signed."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from masa_vit.utils.digests import DIGEST, add_digest, save_weights, sign_safetensors
from masa_vit.utils.weight_files import read_safetensors, read_weight_file, weights_in


def archive(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def rewrite(data: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """The archive with its members replaced by those of `change(name, content)`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, 'w', compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return buffer.getvalue()


def read(path, data: bytes):
    path.write_bytes(data)
    return read_weight_file(path)


WEIGHTS = {'a': torch.arange(4.0), 'b': torch.ones(2, 3, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'file.pth'


def test_files_of_torch_in_both_formats(path):
    content = {'state_dict': WEIGHTS, 'meta': {'epoch': 1}, 'lr': [0.1, None, 'x']}
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        loaded = read_weight_file(path)
        assert loaded['lr'] == content['lr']
        assert all(torch.equal(WEIGHTS[key], loaded['state_dict'][key]) for key in WEIGHTS)


def test_a_digest_is_added_and_compared(path):
    data = archive({'state_dict': WEIGHTS})
    signed = add_digest(data)
    assert add_digest(data) == signed
    assert torch.equal(read(path, signed)['state_dict']['a'], WEIGHTS['a'])
    assert torch.equal(torch.load(path, weights_only=True)['state_dict']['a'], WEIGHTS['a'])

    def zero(name, content):
        return bytes(len(content)) if name.endswith('data/0') else content

    with pytest.raises(
        ValueError, match=r'file\.pth.*is refused: it is damaged or truncated.*digest'
    ):
        read(path, rewrite(signed, zero))  # with the right CRC
    assert read(path, rewrite(data, zero))['state_dict']['a'].sum() == 0  # not ours: no digest


def test_the_checksum_of_a_foreign_archive_is_compared(path):
    data = archive({'state_dict': WEIGHTS})
    at = data.index(WEIGHTS['a'].numpy().tobytes())
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert (
        torch.load(io.BytesIO(flipped), weights_only=True)['state_dict']['a'][0] != 0
    )  # torch's way
    with pytest.raises(ValueError, match='Bad CRC-32'):
        read(path, flipped)


def test_safetensors_with_a_digest(tmp_path):
    path = tmp_path / 'file.safetensors'
    data = save_weights(WEIGHTS, {'format': 'pt', 'epoch': '3'})
    assert torch.equal(read(path, data)['state_dict']['a'], WEIGHTS['a'])
    tensors, metadata = read_safetensors(path)
    assert tensors.keys() == WEIGHTS.keys()
    assert metadata.items() >= {'format': 'pt', 'epoch': '3', 'written_by': 'masa_vit'}.items()
    assert torch.equal(safetensors.torch.load_file(path)['b'], WEIGHTS['b'])
    assert sign_safetensors(data) == data
    for old, new in (
        (b'"a"', b'"c"'),
        (b'"3"', b'"4"'),
        (b'BF16', b'F16 '),
        (DIGEST.encode(), DIGEST.encode().swapcase()),
        (b'written_by', b'written_on'),
        (WEIGHTS['a'].numpy().tobytes(), bytes(16)),
    ):
        assert old in data
        with pytest.raises(ValueError, match=r'file\.safetensors'):
            read(path, data.replace(old, new))
    foreign = safetensors.torch.save(WEIGHTS)
    assert read(path, foreign)['state_dict']['a'][3] == 3


def test_zip_bombs_are_refused(path):
    zeros = archive({'state_dict': {'a': torch.zeros(1 << 20)}})
    with pytest.raises(ValueError, match='compressed'):
        read(path, rewrite(zeros, lambda name, content: content, zipfile.ZIP_DEFLATED))


def test_a_member_that_is_marked_as_a_folder_is_refused(path):
    data = bytearray(add_digest(archive({'state_dict': WEIGHTS})))
    entry = data.index(b'PK\1\2')
    data[entry + 38] |= 0x10  # external attributes
    with pytest.raises(ValueError, match='marked as a folder'):
        read(path, bytes(data))


def test_shapes_beyond_the_file_are_refused(path):
    wide = torch.zeros(1).expand(10**10)
    with pytest.raises(ValueError, match=r'state_dict\.a of shape \(10000000000,\) would have'):
        read(path, archive({'state_dict': {'a': wide}}))
    many = {str(index): torch.zeros(1).expand(5000) for index in range(2000)}
    with pytest.raises(ValueError, match=r'its tensors would have [\d,]+ bytes'):
        read(path, archive({'state_dict': many, 'x': torch.zeros(5000)}))


def test_containers_that_grow_are_refused(path):
    laughs = ['ha']
    for _ in range(30):
        laughs = [laughs] * 10
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for value in (laughs, deep):
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(100_000)
        try:
            data = archive({'state_dict': WEIGHTS, 'x': value})
        finally:
            sys.setrecursionlimit(limit)
        with pytest.raises(ValueError, match='more items than the file can, or are too deep'):
            read(path, data)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'it holds a list, expected a mapping with weights'),
        (torch.ones(2), 'it holds a Tensor'),
        ({'state_dict': 'weights'}, "'state_dict' is a str, expected a mapping"),
        ({'state_dict': None}, "'state_dict' is a NoneType"),
        ({'state_dict': {1: torch.ones(1)}}, "'state_dict' has the key 1"),
        ({'state_dict': {'a': 1.0}}, "'state_dict' has a float at 'a'"),
        ({'state_dict': WEIGHTS, 'meta': None}, "'meta' is a NoneType"),
        ({'state_dict': {'a': torch.tensor([1.0, torch.nan])}}, r'state_dict\.a has 1 of 2 values'),
        ({'state_dict': {}, 'optimizer': [torch.tensor(torch.inf)]}, r'optimizer\[0\] has 1 of 1'),
        ({'state_dict': {'a': torch.ones(2).to_sparse()}}, 'expected a plain tensor'),
        ({'state_dict': {'a': torch.empty(2, device='meta')}}, 'expected a plain tensor'),
    ],
)
def test_other_contents_are_refused(path, content, message):
    with pytest.raises(ValueError, match=rf'file\.pth.*{message}'):
        read(path, archive(content))


def test_metrics_may_be_nan(path):
    content = {'state_dict': WEIGHTS, 'message_hub': {'loss': torch.tensor([torch.nan])}}
    assert read(path, archive(content))['message_hub']['loss'].isnan()


@pytest.mark.parametrize('data', [b'', b'\0' * 100, b'hello world', b'PK\3\4', bytes(range(256))])
@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_other_files(tmp_path, name, data):
    with pytest.raises(ValueError, match=rf"{name}' \(\d+ bytes\) cannot be read"):
        read(tmp_path / name, data)


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match='is a folder'):
        read_weight_file(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'.*none\.pth' does not exist"):
        read_weight_file(tmp_path / 'none.pth')


def test_weights_in():
    ema = {'module.a': torch.zeros(1)}
    assert weights_in({'state_dict': WEIGHTS, 'state_dict_ema': ema}, 'x').keys() == {'a'}
    assert weights_in({'model': WEIGHTS}, 'x').keys() == WEIGHTS.keys()
    assert weights_in(WEIGHTS, 'x').keys() == WEIGHTS.keys()
    with pytest.raises(ValueError, match="'x' holds no weights: in it, 'epoch' is a int"):
        weights_in({'epoch': 1, 'net': WEIGHTS}, 'x')


def test_checkpoints_of_mmengine_without_mmengine(tmp_path):
    pytest.importorskip('mmengine', reason='writes the file')
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0], [1])
    content = {'state_dict': WEIGHTS, 'message_hub': {'loss': history}, 'best': np.float64(0.5)}
    torch.save(content, tmp_path / 'stock.pth')
    code = (
        'import sys\n'
        'from masa_vit.utils.weight_files import read_weight_file\n'
        f'content = read_weight_file({str(tmp_path / "stock.pth")!r})\n'
        'assert "mmengine" not in sys.modules\n'
        'print(content["state_dict"]["a"].sum().item(), content["best"])\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout == '6.0 0.5\n', result.stderr
    loaded = read_weight_file(tmp_path / 'stock.pth')  # mmengine is imported here
    assert loaded['message_hub']['loss'].current() == 1.0
