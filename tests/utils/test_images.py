"""Which images a folder has, and of which classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from masa_vit.utils.images import (
    choose,
    class_folders,
    find_images,
    list_folder,
    read_image,
    timm_transform,
)


def test_find_images(image_root: Path, tmp_path: Path) -> None:
    (image_root / 'val' / 'notes.txt').write_text('no image')
    odd = tmp_path / 'a[1].png'
    first = next((image_root / 'val' / 'cat').rglob('*.png'))
    odd.write_bytes(first.read_bytes())
    assert len(find_images([image_root / 'val'])) == 12
    assert len(find_images([f'{image_root}/val/**/0.png'])) == 3
    assert len(find_images([image_root / 'val', first])) == 12, 'each image once'
    assert find_images([odd]) == [odd]
    (tmp_path / 'void').mkdir()
    for source in (tmp_path / 'void', tmp_path / 'none.png', tmp_path / '*.bmp'):
        with pytest.raises(FileNotFoundError, match=r'no image at .*expected an image file'):
            find_images([source])


def test_class_folders(image_root: Path, tmp_path: Path) -> None:
    for name in ('.cache', 'zebra'):
        (image_root / 'val' / name).mkdir()
    (image_root / 'val' / 'notes.txt').write_text('no class')
    folders = class_folders(image_root / 'val')
    assert [folder.name for folder in folders] == ['cat', 'dog', 'emu', 'zebra']
    with pytest.raises(FileNotFoundError, match=r"the folder '.*none' does not exist"):
        class_folders(tmp_path / 'none')


def test_choose() -> None:
    assert choose(4, None) == [0, 1, 2, 3]
    some = choose(1000, 20)
    assert some == choose(1000, 20)
    assert len({*some}) == 20
    assert some != sorted(some), 'not the first of a class'
    assert sorted(choose(4, 9)) == [0, 1, 2, 3]


def test_images_as_timm_prepares_them(
    small: Callable[..., nn.Module], image_root: Path, tmp_path: Path
) -> None:
    image = timm_transform(small())(next((image_root / 'val').rglob('*.png')))
    assert image.shape == (3, 32, 32)
    Image.new('RGB', (40, 40), 'white').save(tmp_path / 'white.png')
    white = timm_transform(small())(tmp_path / 'white.png')
    torch.testing.assert_close(white, torch.ones(3, 32, 32))  # (1 - mean) / std of 0.5
    assert read_image(tmp_path / 'white.png').min() == 255


def test_foreign_files_links_and_endings(image_root: Path, tmp_path: Path) -> None:
    source = next((image_root / 'val').rglob('*.png'))
    folder = tmp_path / 'photos'
    for name in ('a.PNG', 'sub/b.Jpg', '._a.PNG', '.cache/c.png', '__MACOSX/._a.png', 'x/.y/d.png'):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
    for name in ('notes.txt', 'sub/e.heic', 'Thumbs.db'):
        (folder / name).write_text('no image')
    Image.open(source).save(folder / 'f.gif')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'g.png').symlink_to(source)
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    (folder / 'sub' / 'loop').symlink_to(folder)
    images, others = list_folder(folder)
    names = [str(path.relative_to(folder)) for path in images]
    assert names == ['a.PNG', 'f.gif', 'link/g.png', 'sub/b.Jpg']
    assert [path.name for path in others] == ['Thumbs.db', 'notes.txt', 'e.heic']
    assert find_images([folder]) == images
    assert [path.name for path in class_folders(folder)] == ['link', 'sub', 'x']


def test_scaled_values_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('masa_vit.utils.images._said', set())
    for name in ('a', 'b'):
        Image.fromarray(np.full((4, 4), 257, np.uint16)).save(tmp_path / f'{name}.png')
        assert (read_image(tmp_path / f'{name}.png') == 1).all()
    assert [record.getMessage() for record in caplog.records] == [
        f'images with 16 bits, divided by 257, such as {tmp_path / "a.png"}'
    ]
