"""timm's Hub layout: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import nn

from masa_vit.export.folding import dense_record
from masa_vit.export.parity import Exported, ExportError, Form, input_size, make_form
from masa_vit.layers import SharedLinear
from masa_vit.models.vision_transformer_masa import SHARINGS, MasaVisionTransformer
from masa_vit.utils.digests import sign_safetensors
from masa_vit.utils.staging import staged, total_size

FILES = ('model.safetensors', 'config.json')

_NOT_SAVED = ('drop_rate', 'drop_path_rate', 'device', 'dtype')
"""Arguments of running a model, which are not saved."""


def export_folded(
    model: nn.Module,
    folder: str | Path,
    *,
    dtype: str = 'fp32',
    force: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the plain timm model, which ``timm.create_model('local-dir:...', pretrained=True)`` loads.

    Args:
        model: A timm model, MASA or not, created by `timm.create_model`. Left as it is.
        folder: Where `model.safetensors` and `config.json` go.
        dtype: In which weights are stored: 'fp32', 'bf16', 'fp16'. Tensors of one dimension stay
            float32.
        force: Replace the two files.
        model_args: The arguments that `model` was created with, for versions of timm that do not
            record them.

    Raises:
        ValueError: For weights that are not finite, or arguments that JSON cannot hold.
        OSError: If the files exist, or cannot be written.
        ExportError: If the files do not give the model's outputs; they are removed.
    """
    with staged(folder, FILES, force) as stage:
        form = make_form(model, shared=False, dtype=dtype)
        name, args = _record(model, model_args, dense=True)
        form.model.pretrained_cfg = {**form.model.pretrained_cfg, 'architecture': name}  # type: ignore
        difference = _write(form, args, stage)
        size = total_size(stage, FILES)
    return Exported(Path(folder), size, difference, form.rounding)


def export_hub(
    model: nn.Module,
    folder: str | Path,
    *,
    bake: bool = False,
    dtype: str = 'fp32',
    force: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the MASA model: atoms, coefficients and the rest.

    ``timm.create_model('local-dir:...', pretrained=True)`` loads it after `import masa_vit`, and
    `masa_vit.load_folded` loads it as the plain timm model. With `bake` and ``dtype='bf16'`` it is the
    smallest form for deployment.

    Args:
        model: A MASA model created by `timm.create_model` or `masa_vit.compress`. Left as it is.
        folder: As in `export_folded`.
        bake: Write the coefficients that an MLP computes in place of the MLP.
        dtype: As in `export_folded`; coefficients stay float32.
        force: As in `export_folded`.
        model_args: As in `export_folded`.

    Raises:
        ValueError: As `export_folded`, or if nothing in `model` is shared.
        OSError: As `export_folded`.
        ExportError: As `export_folded`.
    """
    with staged(folder, FILES, force) as stage:
        form = make_form(model, shared=True, baked=bake, dtype=dtype)
        if not isinstance(form.model, MasaVisionTransformer):
            raise ValueError(
                f'timm has no name for a {type(form.model).__name__} whose weights are shared: export '
                'it folded, or save its state dict'
            )
        name, args = _record(form.model, model_args)
        if 'scheme' not in args:  # for readers of config.json
            args = {**SHARINGS.get(name.split('_', 2)[-1], {}), **args}
        difference = _write(form, args, stage)
        size = total_size(stage, FILES)
    return Exported(Path(folder), size, difference, form.rounding)


def _record(
    model: Any, given: Mapping[str, Any] | None, dense: bool = False
) -> tuple[str, dict[str, Any]]:
    """Return the timm name and the arguments of the model, or of the folded one, as JSON values."""
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture', '')
    if not timm.is_model(architecture):
        raise ValueError(
            f'this {type(model).__name__} has no timm name '
            f'(pretrained_cfg: architecture={architecture!r}): create it by timm.create_model or '
            'masa_vit.compress'
        )
    args = {**getattr(model, '_model_args', {}), **(given or {})}
    if dense:
        architecture, args = dense_record(architecture, args)
    args = {key: _plain(value) for key, value in args.items() if key not in _NOT_SAVED}
    for key, value in args.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f'the model has {key}={value!r}, which config.json cannot hold, as timm loads only '
                'strings and numbers from it: export it as onnx or torch-export, or save its state dict '
                'and the arguments by hand'
            ) from None
    return architecture, args


def _plain(value: Any) -> Any:
    """Tensors and arrays (frozen coefficients) as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, 'tolist') else value


def _write(form: Form, args: dict[str, Any], stage: Path) -> float:
    stored = form.stored()
    if hasattr(timm.models, 'get_model_args'):
        stored._model_args = args
        save_for_hf(stored, stage, safe_serialization=True)
    else:  # older versions of timm bring nothing up to date with the model
        args = {**args, 'num_classes': stored.num_classes}
        stored.pretrained_cfg = {**stored.pretrained_cfg, 'input_size': input_size(stored)}
        save_for_hf(stored, stage, model_args=args, safe_serialization=True)
    weights = stage / FILES[0]
    weights.write_bytes(sign_safetensors(weights.read_bytes()))
    try:
        loaded = timm.create_model(f'local-dir:{stage}', pretrained=True).eval()
    except Exception as error:
        raise ExportError(
            f'timm cannot load the files, so none was kept: {type(error).__name__}: {error}. Was '
            'the model changed after timm.create_model, or created with arguments that this version '
            'of timm does not record? Then give them: model_args'
        ) from error
    was_shared, is_shared = (
        any(isinstance(module, SharedLinear) for module in model.modules())
        for model in (stored, loaded)
    )
    if was_shared != is_shared:
        raise ExportError(f'timm loads a {type(loaded).__name__}, not a {type(stored).__name__}')
    return form.check(loaded, 'the files that were written')
