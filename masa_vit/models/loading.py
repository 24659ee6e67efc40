"""Load weights into models, at other image sizes too, and report the outcome by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from masa_vit.layers import SharedLinear
from masa_vit.models.checkpoint_filter import checkpoint_filter_fn
from masa_vit.models.state_dict import merge_pruned, read_stack, rename_old_keys
from masa_vit.utils.messages import first_lines, first_of
from masa_vit.utils.weight_files import read_weight_file, weights_in

LOCAL_DIR = 'local-dir:'
"""How timm's names of models in folders begin."""

WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
"""Files of weights in timm's Hub layout, in its order."""

_WEIGHT_SUFFIXES = ('.pth', '.pt', '.tar', '.bin', '.ckpt', '.safetensors')


@dataclass
class LoadReport:
    """Outcome of loading, by tensor."""

    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line per outcome, with the names where something did not match."""
        lines = [f'{self.source}: {len(self.matched)} tensors matched']
        for outcome in ('resized', 'dropped', 'missing', 'unexpected'):
            names = getattr(self, outcome)
            if names:
                lines.append(f'  {outcome} ({len(names)}): {first_of(names)}')
        return '\n'.join(lines)


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a `.pth` or `.safetensors` file, EMA weights first, without wrappers.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is refused (see `read_weight_file`), or holds no
            weights.
    """
    return weights_in(read_weight_file(path), path)


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    prefix: str = '',
    ignore: Sequence[str] = (),
    weights: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Load weights into a timm model for fine-tuning, at any image size and number of classes.

    Position and patch embeddings are resampled; a classifier of another size is left as it is. Class
    and register tokens that the model lacks are dropped, with their position embeddings.

    Args:
        model: A timm model, ours or any other, or a wrapper around one.
        source: A `.pth` or `.safetensors` file of the same architecture (a training checkpoint is
            fine, wrapper prefixes are found), a folder in timm's Hub layout (as `masa-vit compress`
            writes it), or the name of a timm model with pretrained weights.
        prefix: Beginning of the names of the tensors to load, e.g. 'backbone.'; further prefixes are
            found.
        ignore: Beginnings of names; these tensors are dropped, and reported.
        weights: The content of `source`, if it has been read already: a state dict, or one under
            'state_dict' or 'model'.

    Returns:
        The outcome by tensor.

    Raises:
        FileNotFoundError: If `source` is neither a file nor a model, or a folder without weights.
        ValueError: If nothing matches, or shapes differ in more than sizes that can be resampled.
    """
    source = _weight_file(str(source))
    model = _owner_of_patch_embed(model)
    if weights is not None:
        state_dict = _unwrap(weights)
    elif _is_model_name(source):
        state_dict = timm.create_model(source, pretrained=True).state_dict()
    else:
        state_dict = read_state_dict(source)
    own = model.state_dict()
    # names first: those of version 0.1, of wrappers, of pruned layers
    rename_old_keys(state_dict)
    state_dict = strip_prefix(state_dict, own, prefix)
    merge_pruned(state_dict, own)
    if not any(isinstance(module, SharedLinear) for module in model.modules()):
        _refuse_shared(state_dict, source, model)
    # then the tensors that fine-tuning replaces
    report = LoadReport(source)
    _drop_classifier(model, state_dict, own, report)
    _drop_prefix_tokens(model, state_dict, report)
    for key in [key for key in state_dict if key.startswith(tuple(ignore))]:
        del state_dict[key]
        report.dropped.append(key)
    # then sizes: patch and position embeddings are resampled
    before = {key: value.shape for key, value in state_dict.items()}
    if hasattr(model, 'patch_embed'):
        _check_tokens(model, state_dict, source)
        state_dict = checkpoint_filter_fn(state_dict, model)
    check_dtypes(own, state_dict, source)
    incompatible = _load(model, state_dict, source)
    report.resized = [k for k, v in state_dict.items() if k in before and v.shape != before[k]]
    report.unexpected = list(incompatible.unexpected_keys)
    report.missing = [key for key in incompatible.missing_keys if key not in report.dropped]
    absent = {*incompatible.missing_keys}
    report.matched = [key for key in own if key not in absent]
    if not report.matched:
        raise ValueError(
            f'no tensor of {source!r} matches the model: it has {first_of(state_dict)}, the model '
            f'{first_of(own)}'
        )
    return report


def _weight_file(source: str) -> str:
    """Return the file of weights in a folder of timm's Hub layout; any other source as it is."""
    folder = Path(source.removeprefix(LOCAL_DIR)).expanduser()
    if not folder.is_dir():
        return source
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return str(folder / name)
    raise FileNotFoundError(
        f'{source!r} is a folder without weights: none of {", ".join(WEIGHT_FILES)} is in '
        f'{str(folder.absolute())!r}. `masa-vit compress` writes the first; name any other checkpoint '
        'by its file'
    )


def load_exactly(model: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint that must match in every tensor.

    Args:
        model: As for `load_weights`.
        checkpoint: A `.pth` or `.safetensors` file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it does not match.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint {str(checkpoint)!r} does not exist')
    report = load_weights(model, checkpoint)
    if report.missing or report.dropped or report.resized or report.unexpected:
        raise ValueError(
            f'the checkpoint does not match this {type(model).__name__}: check num_classes, img_size '
            f'and the other arguments (model_args in a config, --model-args of a command)\n{report}'
        )


def check_dtypes(
    own: Mapping[str, torch.Tensor], state_dict: Mapping[str, Any], source: str
) -> None:
    """Refuse integers for floating-point parameters and the like, which torch would truncate.

    Raises:
        ValueError: If a tensor is of another kind; the message names it.
    """
    for key, value in state_dict.items():
        if isinstance(value, torch.Tensor) and key in own and _kind(value) != _kind(own[key]):
            raise ValueError(
                f'{source!r} has {key} as {value.dtype}, the model as {own[key].dtype}; expected '
                f'{_kind(own[key])} numbers. It is not a file of this model, or it is damaged.'
            )


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_complex():
        return 'complex'
    return 'floating-point' if tensor.is_floating_point() else 'integer'


def _refuse_shared(state_dict: dict[str, Any], source: str, model: nn.Module) -> None:
    """Raise ValueError if the checkpoint is that of a MASA model, for a dense one."""
    if (found := read_stack(state_dict)).is_shared:
        raise ValueError(
            f'{source!r} is the checkpoint of a MASA model (dictionaries: {sorted(found.atoms)}), this '
            f'{type(model).__name__} is dense. Load it into its MASA model, from which masa_vit.fold '
            f'makes the dense one: {found.create_with()}'
        )


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    for key in ('state_dict', 'model'):
        checkpoint = checkpoint.get(key, checkpoint)
    return dict(checkpoint)


def _is_model_name(source: str) -> bool:
    path = Path(source)
    is_file = path.exists() or len(path.parts) > 1 or path.suffix in _WEIGHT_SUFFIXES
    return not is_file and timm.is_model(source.partition('.')[0])


def _owner_of_patch_embed(model: nn.Module) -> nn.Module:
    """The vision transformer inside a wrapper, if there is exactly one; else the module itself."""
    owners = [module for module in model.modules() if hasattr(module, 'patch_embed')]
    return owners[0] if len(owners) == 1 else model


def _load(model: nn.Module, state_dict: dict[str, Any], source: str) -> Any:
    try:
        return model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:  # torch lists every tensor of another shape
        raise ValueError(
            f'{source!r} does not match the model: embed_dim, mlp_ratio or another size differs. '
            f'{first_lines(error)}'
        ) from None


def strip_prefix(
    state_dict: dict[str, Any], own: Mapping[str, Any], prefix: str = ''
) -> dict[str, Any]:
    """Remove `prefix` and the next prefix with the most names of the model; drop other tensors."""
    if not any(key.startswith(prefix) for key in state_dict):
        raise ValueError(
            f'no tensor of the checkpoint begins with prefix={prefix!r}; it has {first_of(state_dict)}'
        )
    state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    probe = list(own)[:8]
    candidates = {key[: -len(k)] for k in probe for key in state_dict if key.endswith(f'.{k}')} | {
        ''
    }
    # sorted: of equal candidates always the same one
    best = max(sorted(candidates), key=lambda p: sum(p + key in state_dict for key in own))
    return {key.removeprefix(best): v for key, v in state_dict.items() if key.startswith(best)}


def _check_tokens(model: Any, state_dict: Mapping[str, Any], source: str) -> None:
    """Name the argument of the model that differs, before position embeddings are resampled."""
    differing = {}
    patches = state_dict.get('patch_embed.proj.weight')
    if patches is not None and patches.ndim == 4:
        proj = model.patch_embed.proj
        if patches.shape[1] != proj.in_channels:
            differing['in_chans'] = patches.shape[1], proj.in_channels
        if patches.shape[0] != proj.out_channels:
            differing['embed_dim'] = patches.shape[0], proj.out_channels
    positions = state_dict.get('pos_embed')
    if getattr(model, 'num_prefix_tokens', 0) and positions is not None and positions.ndim == 3:
        has_class = 'cls_token' in state_dict
        registers = state_dict['reg_token'].shape[1] if 'reg_token' in state_dict else 0
        without = _embeds_patches_alone(positions.shape[1], has_class + registers, model)
        for name, attribute, theirs in (
            ('class_token', 'has_class_token', has_class),
            ('reg_tokens', 'num_reg_tokens', registers),
            ('no_embed_class', 'no_embed_class', without),
        ):
            own = getattr(model, attribute, theirs)  # other families lack some of them
            if theirs not in (None, own):
                differing[name] = theirs, own
    if differing:
        listed = ', '.join(
            f'{name}={theirs} (model: {own})' for name, (theirs, own) in differing.items()
        )
        raise ValueError(f'{source!r} does not match the model: the checkpoint has {listed}')


def _embeds_patches_alone(length: int, tokens: int, model: Any) -> bool | None:
    """Return whether `length` embeddings cover only the patches; None if both readings fit a grid."""
    grid = model.patch_embed.num_patches
    alone = length == grid or math.isqrt(length) ** 2 == length
    together = length - tokens == grid or math.isqrt(length - tokens) ** 2 == length - tokens
    return alone if alone != together else None


def _drop_classifier(
    model: nn.Module,
    state_dict: dict[str, Any],
    own: Mapping[str, Any],
    report: LoadReport,
) -> None:
    classifier = getattr(model, 'pretrained_cfg', {}).get('classifier') or ()
    for name in (classifier,) if isinstance(classifier, str) else classifier:
        for key in (f'{name}.weight', f'{name}.bias'):
            if key in state_dict and (key not in own or own[key].shape != state_dict[key].shape):
                del state_dict[key]
                report.dropped.append(key)


def _drop_prefix_tokens(model: Any, state_dict: dict[str, Any], report: LoadReport) -> None:
    """Drop class and register tokens for a model without any, as backbones of detectors are."""
    if getattr(model, 'num_prefix_tokens', None) != 0:
        return
    dropped = [key for key in ('cls_token', 'reg_token') if key in state_dict]
    count = sum(state_dict.pop(key).shape[1] for key in dropped)  # (1, n, C) each
    report.dropped.extend(dropped)
    if count and not model.no_embed_class and 'pos_embed' in state_dict:
        state_dict['pos_embed'] = state_dict['pos_embed'][:, count:]  # (1, n + N, C) -> (1, N, C)
