"""Read images for detectors as for classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.fileio import get

from masa_vit.utils.images import UnreadableImageError, read_image


@TRANSFORMS.register_module()
class LoadImageFromFile(_LoadImageFromFile):
    """mmcv's transform of this name, which in mmdet's scope reads by `masa_vit.utils.images.read_image`.

    One reader for both tasks: orientation, 16 bits, floating point and unreadable files. With
    another `color_type` or `imdecode_backend` than mmcv's defaults it is mmcv's.

    Raises:
        UnreadableImageError: names a file that cannot be read, or whose size is not the one that the
            annotation file gives.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add `img` (H, W, 3), BGR, and its shape."""
        if (self.color_type, self.imdecode_backend) != ('color', 'cv2') or self.file_client_args:
            return super().transform(results)
        path = results['img_path']
        try:
            image = read_image(path, self._bytes(path))
        except UnreadableImageError:
            if self.ignore_empty:
                return None
            raise
        height, width = image.shape[:2]
        listed = results.get('width', width), results.get('height', height)
        if listed != (width, height):
            raise UnreadableImageError(
                f'{path} is {width}x{height} pixels, but {listed[0]}x{listed[1]} in the annotation '
                'file: its boxes are of another image, or of one that was turned or resized'
            )
        bgr = np.ascontiguousarray(image[..., ::-1])
        results['img'] = bgr.astype(np.float32) if self.to_float32 else bgr
        results['img_shape'] = results['ori_shape'] = (height, width)
        return results

    def _bytes(self, path: str) -> bytes | None:
        """The bytes of a file that is not on a local disk."""
        return (
            get(path, backend_args=self.backend_args)
            if self.backend_args or '://' in path
            else None
        )
