"""Files that attack or confuse what loads them, given to every command that reads files of weights.

    python tests/reliability/hostile.py

For each file and command: the command must end with an error that names the file, within 20 seconds and
3 GiB, or do its work where the content allows it; nothing in the file may be executed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save

from masa_vit.cli import main as masa_vit_command

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)
SECONDS = 20


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def archive(content: object, **kwargs: Any) -> bytes:
    """The bytes of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def rezipped(
    data: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """An archive whose members are changed, with right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, 'w', compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def nested(depth: int) -> list:
    """Lists within lists."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def weights(name: str = 'vit_tiny_masa_s2') -> dict[str, torch.Tensor]:
    """Of a small model."""
    torch.manual_seed(0)
    return timm.create_model(name, **SMALL).state_dict()


def safetensors_file(header: Any, data: bytes = b'') -> bytes:
    """The bytes of a `.safetensors` file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def corpus(canary: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield kind, file name and bytes; what is executed would write `canary`."""
    state = {f'model.{key}': value for key, value in weights().items()}  # as a classifier's
    touch = f'touch {canary}'
    code = f'open({str(canary)!r}, "w").close()'
    inner = pickle.dumps(Call(os.system, touch))
    core = getattr(np, '_core', None) or np.core
    payloads = {
        'system': Call(os.system, touch),
        'exec': Call(exec, code),
        'eval': Call(eval, code),
        'nested_pickle': Call(pickle.loads, inner),
        'numpy_scalar': Call(core.multiarray.scalar, np.dtype('O'), inner),
        'getattr': Call(getattr, dict, '__init__'),
        'popen': Call(os.popen, touch),
        'torch_load': Call(torch.load, io.BytesIO(inner)),
        'open': Call(open, str(canary), 'w'),
    }
    for name, payload in payloads.items():
        content = {'state_dict': state, 'meta': {'epoch': 1, 'iter': 1}, 'x': payload}
        yield 'executes', f'{name}.pth', archive(content)
        yield (
            'executes',
            f'{name}_legacy.pth',
            archive(content, _use_new_zipfile_serialization=False),
        )
    for protocol in range(6):
        data = pickle.dumps({'state_dict': payloads['system']}, protocol)
        yield 'raw pickle', f'pickle_{protocol}.pth', data
    bare = io.BytesIO()
    with zipfile.ZipFile(bare, 'w') as file:
        file.writestr('archive/data.pkl', pickle.dumps({'state_dict': payloads['system']}))
    yield 'bare zip', 'bare_zip.pth', bare.getvalue()
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    yield 'TorchScript', 'script.pth', script.getvalue()
    text = {'meta': {'epoch': 1, 'iter': 1, 'cfg': code, 'config': code}}
    yield 'code as text', 'config_text.pth', archive({'state_dict': state, **text})
    yield (
        'bomb',
        'deflated.pth',
        rezipped(
            archive({'state_dict': {'a': torch.zeros(1 << 24)}}),
            lambda _, d: d,
            zipfile.ZIP_DEFLATED,
        ),
    )
    yield 'size', 'zero_stride.pth', archive({'state_dict': {'a': torch.zeros(1).expand(10**10)}})
    yield (
        'size',
        'pos_embed.pth',
        archive({'state_dict': {**state, 'model.pos_embed': torch.zeros(1).expand(1, 10**9, 32)}}),
    )
    big = archive({'state_dict': {'a': torch.arange(4.0)}})
    yield (
        'size',
        'storage.pth',
        rezipped(
            big, lambda n, d: d.replace(b'K\x04', b'J\xff\xff\xff\x7f') if n.endswith('pkl') else d
        ),
    )
    laughs: Any = ['ha']
    for _ in range(30):
        laughs = [laughs] * 10
    yield 'growth', 'laughs.pth', archive({'state_dict': state, 'x': laughs})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    yield 'depth', 'deep.pth', archive({'state_dict': state, 'x': nested(5_000)})
    sys.setrecursionlimit(limit)
    yield 'depth', 'deep_pickle.pth', b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.'
    for name, value in {
        'string': 'weights', 'list': [1], 'none': None, 'number': 3, 'integers': {1: torch.ones(1)},
        'floats': {'a': 1.0}, 'nested': {'a': {'b': torch.ones(1)}}, 'empty': {},
    }.items():  # fmt: skip
        yield 'structure', f'state_dict_{name}.pth', archive({'state_dict': value})
    for name, value in {
        'none': None,
        'list': [],
        'text': 'x',
        'epochs': {'epoch': 'x', 'iter': -1},
    }.items():
        yield 'structure', f'meta_{name}.pth', archive({'state_dict': state, 'meta': value})
    absurd = {'epoch': 10**9, 'iter': 10**9, 'seed': 'x', 'dataset_meta': [1], 'cfg': 5}
    yield 'structure', 'meta_absurd.pth', archive({'state_dict': state, 'meta': absurd})
    meta = {'epoch': 1, 'iter': 1, 'world_size': 1}
    for name, value in {'text': 'x', 'list': [1, 2], 'empty': {}}.items():
        rest = {'optimizer': value, 'message_hub': value, 'param_schedulers': value}
        yield (
            'structure',
            f'training_{name}.pth',
            archive({'state_dict': state, 'meta': meta, **rest}),
        )
    yield 'structure', 'top_list.pth', archive([1, 2])
    yield 'structure', 'top_tensor.pth', archive(torch.ones(3))
    for name, tensor in {
        'nan': torch.full((10,), torch.nan), 'inf': torch.full((10,), torch.inf),
        'int': torch.ones(10, dtype=torch.int64), 'complex': torch.ones(10, dtype=torch.complex64),
        'bool': torch.ones(10, dtype=torch.bool), 'sparse': torch.ones(10).to_sparse(),
        'meta': torch.empty(10, device='meta'),
        'quantized': torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.qint8),
    }.items():  # fmt: skip
        yield 'values', f'{name}.pth', archive({'state_dict': {**state, 'model.head.bias': tensor}})
    good = archive({'state_dict': state, 'meta': meta})
    yield 'damage', 'empty.pth', b''
    yield 'damage', 'text.pth', b'hello\n' * 100
    yield 'damage', 'html.pth', b'<!DOCTYPE html><html>404</html>'
    yield 'damage', 'noise.pth', bytes(range(256)) * 20
    yield 'damage', 'cut.pth', good[: len(good) // 2]
    yield 'damage', 'zeros.pth', bytes(5000)
    yield 'names', 'ü文.pth', good[:99]
    tensors = save(state)
    yield 'safetensors', 'cut.safetensors', tensors[:1000]
    yield 'safetensors', 'empty.safetensors', b''
    yield 'safetensors', 'long_header.safetensors', struct.pack('<Q', 1 << 60) + b'{}'
    yield 'safetensors', 'no_json.safetensors', safetensors_file(b'{' * 1000)
    yield 'safetensors', 'deep_json.safetensors', safetensors_file(b'{"a":' * 50_000)
    for name, header in {
        'list': [], 'not_utf8': b'{"\xff": 1}', 'meta_list': {'__metadata__': [1]},
        'overlap': {'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8]),
                    'b': dict(dtype='F32', shape=[2], data_offsets=[4, 12])},
        'huge': {'a': dict(dtype='F32', shape=[1 << 40], data_offsets=[0, 4])},
        'negative': {'a': dict(dtype='F32', shape=[-1], data_offsets=[0, 8])},
        'dtype': {'a': dict(dtype='X9', shape=[2], data_offsets=[0, 8])},
        'digest': {'__metadata__': {'masa_vit.sha256': '0', 'written_by': 'masa_vit'},
                   'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8])},
    }.items():  # fmt: skip
        yield 'safetensors', f'{name}.safetensors', safetensors_file(header, bytes(12))
    yield 'safetensors', 'as_pth.pth', tensors
    yield (
        'safetensors',
        'nan.safetensors',
        save({**state, 'model.head.bias': torch.full((10,), torch.nan)}),
    )


def folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield kind and folder: timm's Hub layout with a config that lies."""
    dense = 'vit_tiny_patch16_224'
    good = dict(architecture=dense, model_args=SMALL, num_classes=10)
    configs: dict[str, Any] = {
        'depth': {**good, 'model_args': {**SMALL, 'depth': 10**6}},
        'negative': {**good, 'model_args': {**SMALL, 'embed_dim': -1}},
        'wide': {**good, 'model_args': {**SMALL, 'embed_dim': 10**9}},
        'classes': {**good, 'num_classes': 10**12, 'model_args': {**SMALL, 'num_classes': 10**12}},
        'text': {**good, 'model_args': {**SMALL, 'depth': 'two'}},
        'unknown': {**good, 'architecture': '../../etc/passwd'},
        'list': {**good, 'architecture': ['a']},
        'nested': {**good, 'architecture': 'local-dir:/tmp'},
        'hub': {**good, 'architecture': 'hf-hub:a/b'},
        'args_list': {**good, 'model_args': [1]},
        'cfg_text': {**good, 'pretrained_cfg': 'x'},
        'cfg_url': {**good, 'pretrained_cfg': {'url': 'file:///etc/passwd', 'file': '/etc/passwd'}},
        'top_list': [1],
        'number': 3,
    }
    for name, config in configs.items():
        folder = root / f'folder_{name}'
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps(config))
        (folder / 'model.safetensors').write_bytes(save(weights(dense)))
        yield 'folder', folder
    for name, text in {'no_json': b'{', 'deep_json': b'[' * 100_000, 'not_utf8': b'\xff'}.items():
        folder = root / f'folder_{name}'
        folder.mkdir()
        (folder / 'config.json').write_bytes(text)
        yield 'folder', folder
    folder = root / 'folder_no_weights'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(good))
    yield 'folder', folder
    folder = root / 'folder.pth'
    folder.mkdir()
    yield 'folder', folder


_MODEL_ARGS = {key: value for key, value in SMALL.items() if key != 'num_classes'}
CONFIG = f"""
_base_ = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'
model = dict(
    model_name='vit_tiny_masa_s2', model_args=dict(_delete_=True, **{_MODEL_ARGS!r}))
train_cfg = dict(max_epochs=1)
"""


def commands(path: Path, work: Path, detector: Path | None) -> dict[str, list[str]]:
    """The command lines that read a file or folder."""
    config, out = work / 'small.py', work / 'out'
    args = [f'{key}={value}' for key, value in SMALL.items()]
    model = ['vit_tiny_masa_s2', '--checkpoint', str(path), '--model-args', *args]
    dense = ['vit_tiny_patch16_224', '--checkpoint', str(path), '--model-args', *args]
    run = ['--work-dir', str(out)]
    lines = {
        'inspect': ['inspect', str(path), '--out', str(out), '--format', 'json'],
        'export': ['export', *model, '--format', 'folded', '--out', str(out)],
        'compress': ['compress', *dense, '--num-atoms', '1', '--out', str(out)],
    }
    if path.name.startswith('folder_'):
        lines['export'] = ['export', str(path), '--format', 'folded', '--out', str(out)]
        lines['compress'] = ['compress', str(path), '--num-atoms', '1', '--out', str(out)]
        return lines
    options = ['--cfg-options']
    lines |= {
        'train --resume': ['train', str(config), '--resume', str(path), *run],
        'train, load_from': ['train', str(config), *run, *options, f'load_from={str(path)!r}'],
        'train, init_from': [
            'train',
            str(config),
            *run,
            *options,
            f'model.init_from={str(path)!r}',
        ],
        'test': ['test', str(config), str(path), *run],
        'predict': ['predict', str(config), str(path), str(work / 'image.png')],
        'fold': ['fold', str(config), str(path), '--out', str(out)],
    }
    if detector is not None:
        lines |= {
            'detector test': ['test', str(detector), str(path), *run],
            'detector predict': ['predict', str(detector), str(path), str(work / 'image.png')],
            'detector fold': ['fold', str(detector), str(path), '--out', str(out)],
            'detector init_cfg': [
                *('train', str(detector), *run, *options, 'model.init_cfg.type=Pretrained'),
                f'model.init_cfg.checkpoint={str(path)!r}',
            ],
        }
    return lines


class TookTooLongError(BaseException):
    """A command hangs."""


def run(line: list[str]) -> tuple[str, str]:
    """Run a command in this process; return its outcome and the last line of its errors."""

    def stop(*_: object) -> None:
        raise TookTooLongError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = masa_vit_command(line)
    except TookTooLongError:
        return 'HANG', ''
    except BaseException as error:
        return 'TRACEBACK', f'{type(error).__name__}: {error}'
    finally:
        signal.alarm(0)
    text = err.getvalue()
    if 'Traceback' in text or '(--traceback shows where)' in text:
        return 'TRACEBACK', text
    return ('works' if code == 0 else 'refused'), text


def main() -> int:
    """Run all files through all commands; print what is wrong and a table of counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--only', help='files whose name has this text')
    parser.add_argument('--no-detector', action='store_true')
    parser.add_argument('--verbose', action='store_true', help='print every case')
    args = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        bad = check(Path(name), args.only or '', not args.no_detector, args.verbose)
    return int(bad > 0)


def check(root: Path, only: str = '', with_detector: bool = True, verbose: bool = False) -> int:
    """Return the number of cases that are executed, hang or end in a traceback or a wrong message."""
    from PIL import Image

    canary, files = root / 'canary', root / 'files'
    files.mkdir()
    Image.new('RGB', (16, 16)).save(root / 'image.png')
    (root / 'small.py').write_text(CONFIG)
    detector = None
    if with_detector:
        sys.path.insert(0, str(ROOT / 'tests' / 'detection'))
        from tiny_detector import write_coco, write_config

        detector = write_config(root / 'detector.py', write_coco(root / 'coco'))
    cases = []
    for kind, name, data in corpus(canary):
        (files / name).write_bytes(data)
        cases.append((kind, files / name))
    cases += folders(files)
    counts: Counter[tuple[str, str]] = Counter()
    bad = 0
    canary.unlink(missing_ok=True)
    for kind, path in cases:
        if only not in path.name:
            continue
        for command, line in commands(path, root, detector).items():
            shutil.rmtree(root / 'out', ignore_errors=True)
            outcome, text = run(line)
            if canary.exists():
                canary.unlink()
                outcome = 'EXECUTED'
            if outcome == 'refused' and not any(
                n in text for n in (path.name, path.stem, repr(path.name)[1:-1])
            ):
                outcome = 'UNNAMED'
            counts[kind, outcome] += 1
            bad += outcome.isupper()
            if outcome.isupper() or verbose:
                print(f'{outcome}: {command} {path.name}: {text.strip()[-300:]}', flush=True)
    kinds = sorted({kind for kind, _ in counts})
    outcomes = sorted({outcome for _, outcome in counts})
    print(f'{"kind":14}' + ''.join(f'{outcome:>12}' for outcome in outcomes))
    for kind in kinds:
        print(f'{kind:14}' + ''.join(f'{counts[kind, outcome]:12}' for outcome in outcomes))
    print(f'{len(cases)} files of {len(kinds)} kinds, {counts.total()} cases, {bad} bad')
    return bad


if __name__ == '__main__':
    sys.exit(main())
