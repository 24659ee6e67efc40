"""Image files of many kinds are read rightly or named, and alike in both tasks."""

import numpy as np
import pytest
from image_files import readable, unreadable, write

from masa_vit.training import ImageFolder
from masa_vit.utils.images import UnreadableImageError, read_image, read_size

READABLE = list(readable())
UNREADABLE = list(unreadable())


def in_detection(path):
    """The picture as the pipeline of a detector loads it."""
    from mmdet.registry import TRANSFORMS

    import masa_vit.detection  # noqa: F401  registers the transform

    load = TRANSFORMS.build(dict(type='LoadImageFromFile', _scope_='mmdet'))
    results = load({'img_path': str(path)})
    assert results['img'].shape[:2] == results['img_shape'] == results['ori_shape']
    return results['img'][..., ::-1]


def in_classification(path):
    """The picture as the dataset of a classifier gives it."""
    data = ImageFolder(str(path.parents[1]))
    return data[0]['inputs'].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(
    ('name', 'data', 'picture', 'tolerance'), READABLE, ids=[case[0] for case in READABLE]
)
def test_readable(tmp_path, name, data, picture, tolerance):
    path = write(tmp_path / 'class', name, data)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert read_size(path) == (image.shape[1], image.shape[0])
    assert np.abs(image.astype(int) - picture).max() <= tolerance
    assert np.array_equal(in_classification(path), image)
    pytest.importorskip('mmdet', reason='the other task')
    assert np.array_equal(in_detection(path), image)


@pytest.mark.parametrize(
    ('name', 'data', 'message'), UNREADABLE, ids=[case[0] for case in UNREADABLE]
)
def test_unreadable(tmp_path, name, data, message):
    path = write(tmp_path / 'class', name, data)
    pytest.importorskip('mmdet', reason='the other task')
    for read in (read_image, in_classification, in_detection):
        with pytest.raises(UnreadableImageError, match=rf'{name}(.|\n)*{message}'):
            read(path)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'link.png').symlink_to(tmp_path / 'nowhere')
    for name in ('folder.png', 'link.png', 'none.png'):
        with pytest.raises(UnreadableImageError, match=name):
            read_image(tmp_path / name)
