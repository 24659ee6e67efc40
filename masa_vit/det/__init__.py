"""Deprecated name of `masa_vit.detection`, for the `custom_imports` of older configs."""

import warnings

from masa_vit.detection import *  # noqa: F403

warnings.warn(
    'masa_vit.det is deprecated; import masa_vit.detection', DeprecationWarning, stacklevel=2
)
