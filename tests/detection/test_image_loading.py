"""The transform that loads images for detectors; the kinds of files are in tests/reliability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from PIL import Image

from masa_vit.detection import LoadImageFromFile
from masa_vit.utils.images import UnreadableImageError


def load(path: Path, **kwargs: object) -> dict | None:
    transform = TRANSFORMS.build(dict(type='LoadImageFromFile', **kwargs))
    assert type(transform) is LoadImageFromFile
    return transform({'img_path': str(path)})


def test_arguments_of_mmcv(coco_root: Path, tmp_path: Path) -> None:
    path = coco_root / 'train2017' / '000000000001.jpg'
    image = load(path)['img']
    assert image.dtype == np.uint8
    assert image.flags['C_CONTIGUOUS']
    assert np.array_equal(image[..., ::-1], np.array(Image.open(path)))
    assert load(path, to_float32=True)['img'].dtype == np.float32
    assert load(path, color_type='grayscale')['img'].ndim == 2
    remote = load(path, backend_args=dict(backend='local'))
    assert np.array_equal(remote['img'], image)
    (tmp_path / 'no.jpg').touch()
    assert load(tmp_path / 'no.jpg', ignore_empty=True) is None
    with pytest.raises(UnreadableImageError, match=r'no\.jpg'):
        load(tmp_path / 'no.jpg')
