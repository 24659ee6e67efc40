"""Damage checkpoints that the package wrote, at random, and read them.

    python tests/reliability/mutations.py --number 10000

A damaged file must be refused by an error that names it, or give the content that was written, bit for
bit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import timm
import torch

from masa_vit.export import export_hub
from masa_vit.training import train
from masa_vit.utils.weight_files import read_weight_file, walk

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)


def own_files(folder: Path) -> list[Path]:
    """A checkpoint of a training and a folder's weights."""
    config = ROOT / 'configs' / 'cls' / 'vit_tiny_masa_s4_digits.py'
    options = {
        'train_cfg.max_epochs': 1,
        'model.model_args.depth': 4,
        'model.model_args.embed_dim': 32,
    }
    train(config, folder / 'run', cfg_options=options)
    export_hub(timm.create_model('vit_tiny_masa_s2', **SMALL), folder / 'hub')
    return [folder / 'run' / 'epoch_1.pth', folder / 'hub' / 'model.safetensors']


def mutate(data: bytes, generator: random.Random) -> tuple[str, bytes]:
    """One of seven kinds of damage, at a random place."""
    kind = generator.choice(['bit', 'bit', 'byte', 'run', 'cut', 'zeros', 'swap', 'insert'])
    # half of the places lie near the ends, where headers and directories are
    size = len(data)
    near = generator.choice([0, size - 4096 if size > 4096 else 0])
    start = generator.choice(
        [generator.randrange(size), near + generator.randrange(min(size, 4096))]
    )
    start = min(start, size - 1)
    length = generator.choice([1, 4, 16, 64, 512, 4096])
    changed = bytearray(data)
    if kind == 'bit':
        changed[start] ^= 1 << generator.randrange(8)
    elif kind == 'byte':
        changed[start] = generator.randrange(256)
    elif kind == 'run':
        changed[start : start + length] = generator.randbytes(len(data[start : start + length]))
    elif kind == 'zeros':
        changed[start : start + length] = bytes(len(data[start : start + length]))
    elif kind == 'cut':
        del changed[start : start + generator.choice([length, size])]
    elif kind == 'insert':
        changed[start:start] = generator.randbytes(length)
    else:
        other = generator.randrange(size)
        first, second = data[start : start + length], data[other : other + length]
        length = min(len(first), len(second))
        changed[start : start + length] = second[:length]
        changed[other : other + length] = first[:length]
    return kind, bytes(changed)


def is_equal(content: dict, expected: dict) -> bool:
    """Whether two contents have the same places, types and values, tensors bit for bit."""
    places, others = (list(walk(each)) for each in (content, expected))
    return len(places) == len(others) and all(
        place == other and type(value) is type(wanted) and _is_same(value, wanted)
        for (place, value), (other, wanted) in zip(places, others, strict=True)
    )


def _is_same(value: object, wanted: object) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return (
            value.dtype == wanted.dtype
            and value.shape == wanted.shape
            and torch.equal(value.contiguous().view(-1).view(torch.uint8) if value.numel() else value,
                            wanted.contiguous().view(-1).view(torch.uint8) if wanted.numel() else wanted)
        )  # fmt: skip
    if isinstance(value, (dict, list, tuple)):
        return True  # their items are compared
    return value == wanted or value != value


def main() -> int:
    """Return 1 if a damaged file is read as something else, or ends in another error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--number', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    generator = random.Random(args.seed)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        files = own_files(Path(name))
        originals = [(path, path.read_bytes(), read_weight_file(path)) for path in files]
        for path, data, _ in originals:
            print(f'{path.name}: {len(data):,} bytes')
        for number in range(args.number):
            path, data, expected = originals[number % len(originals)]
            kind, changed = mutate(data, generator)
            damaged = Path(name) / f'damaged{path.suffix}'
            damaged.write_bytes(changed)
            try:
                content = read_weight_file(damaged)
            except ValueError as error:
                outcome = 'refused' if damaged.name in str(error) else 'UNNAMED'
            except Exception as error:
                outcome = 'CRASH'
                print(f'{kind}: {type(error).__name__}: {error}')
            else:
                outcome = 'equal' if changed == data or is_equal(content, expected) else 'WRONG'
                if outcome == 'WRONG':
                    places = [
                        at for at, (a, b) in enumerate(zip(data, changed, strict=False)) if a != b
                    ]
                    print(f'file {number}: {kind} changes bytes {places[:8]} of {len(data)}')
            counts[path.suffix, outcome] += 1
    for (suffix, outcome), count in sorted(counts.items()):
        print(f'{suffix:14}{outcome:10}{count:8}')
    bad = sum(count for (_, outcome), count in counts.items() if outcome.isupper())
    print(f'{args.number:,} damaged files, {bad} bad')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(main())
