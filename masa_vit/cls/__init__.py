"""Deprecated name of `masa_vit.training`, for the `custom_imports` of older configs."""

import warnings

from masa_vit.training import *  # noqa: F403

warnings.warn(
    'masa_vit.cls is deprecated; import masa_vit.training', DeprecationWarning, stacklevel=2
)
