"""`timm.create_model` for names and arguments from a config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.models.loading import LOCAL_DIR
from masa_vit.models.vision_transformer_masa import MasaVisionTransformer


def create_timm_model(name: str, model_args: Mapping[str, Any], **fixed: Any) -> nn.Module:
    """Create a timm model, with errors that name the field of the config.

    Args:
        name: Any timm model name, ours or others ('hf-hub:' and 'local-dir:' too).
        model_args: Arguments of `timm.create_model` that the config chose.
        fixed: Arguments that the caller sets; `model_args` may not hold them.

    Raises:
        FileNotFoundError: If the folder of a 'local-dir:' name has no model.
        ValueError: For an unknown name, an unknown or misplaced argument, or a value that timm refuses.
    """
    folder = Path(name.removeprefix(LOCAL_DIR))
    if name.startswith(LOCAL_DIR) and not (folder / 'config.json').is_file():
        raise FileNotFoundError(
            f'model_name {name!r}: no config.json in the folder {str(folder.absolute())!r}. '
            '`masa-vit compress` writes a model into a folder: set model_name=local-dir:FOLDER, and the '
            'initial weights to FOLDER (init_from of a classifier, init_cfg.checkpoint of a backbone)'
        )
    # 'hf-hub:' and 'local-dir:' names are timm's to resolve
    if ':' not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(
            f'unknown model_name {name!r}; closest names: {", ".join(close) or "none"}. '
            "See timm.list_models('*masa*') and timm.list_models('vit_*')."
        )
    if taken := {'pretrained', 'checkpoint_path'} & set(model_args):
        raise ValueError(
            f'model_args has {sorted(taken)}; initial weights are chosen beside model_args (init_from '
            'of a classifier, init_cfg of a backbone): a path, or the name of a timm model with '
            'pretrained weights'
        )
    if taken := set(fixed) & set(model_args):
        raise ValueError(f'model_args has {sorted(taken)}, which {name!r} gets from elsewhere here')
    try:
        return timm.create_model(name, **model_args, **fixed)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not found:
            raise ValueError(f'model_args of {name!r}: {error}; got {dict(model_args)}') from error
        known = {
            p
            for cls in (VisionTransformer, MasaVisionTransformer)
            for p in signature(cls).parameters
        }
        close = difflib.get_close_matches(found[1], known, n=3)
        raise ValueError(
            f'model_args of {name!r}: the model takes no {found[1]!r}'
            + (f'; did you mean {" or ".join(close)}?' if close else '')
        ) from error
    except AssertionError as error:  # timm's way to refuse sizes
        raise ValueError(f'model_args of {name!r}: {error}; got {dict(model_args)}') from error
