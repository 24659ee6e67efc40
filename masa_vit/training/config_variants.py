"""Variants of a config: its dense baseline, another source of coefficients, another sharing scheme."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from masa_vit.export.folding import dense_record
from masa_vit.models import dense_architecture
from masa_vit.models.schemes import check_scheme
from masa_vit.training.configs import load_config


def load_variant(
    config: str | Path | Config,
    *,
    dense: bool = False,
    coefficients: str | None = None,
    scheme: str | None = None,
) -> Config:
    """Load a config and change the sharing of its MASA model; the rest of the recipe stays.

    The name of the file follows: ``vit_tiny_masa_s4_digits.py`` becomes ``vit_tiny_dense_digits.py``,
    ``vit_tiny_masa_s4_mlp_digits.py`` or ``vit_tiny_masa_s4_sequential_digits.py``. It names the work
    dir, and the resolved config is written there.

    Args:
        config: Path, `masa_vit::...`, or a loaded config.
        dense: Train the dense baseline.
        coefficients: Source of the coefficients, see `MasaVisionTransformer`.
        scheme: A name in `masa_vit.models.schemes`.

    Raises:
        ValueError: If the config has no MASA model by name, or more than one variant is given.
    """
    if not (dense or coefficients or scheme):
        return load_config(config)
    if dense and (coefficients or scheme):
        raise ValueError('the dense baseline shares nothing: neither coefficients nor scheme')
    if scheme:
        check_scheme(scheme)
    cfg = load_config(config)
    name = _name(cfg, dense, coefficients or scheme)
    new = Config(cfg._cfg_dict.to_dict(), cfg_text=cfg.pretty_text, filename=name)
    node = _masa_node(new.model)
    if node is None:
        raise ValueError(
            f'config {cfg.filename or ""} has no model_name of a MASA model such as vit_tiny_masa_s4: '
            'it has no variants'
        )
    args = dict(node.get('model_args') or {})
    if dense:
        node['model_name'], args = dense_record(node['model_name'], args)
        node.pop('freeze_atoms', None)
    if coefficients:
        args['coefficients'] = coefficients
    if scheme:
        args['scheme'] = scheme
    node['model_args'] = args
    return new


def _name(cfg: Config, dense: bool, suffix: str | None) -> str | None:
    if cfg.filename is None:
        return None
    path = Path(cfg.filename)
    replacement = 'dense' if dense else rf'\g<0>_{suffix}'
    stem, number = re.subn(r'masa(_qkv)?_s\d+|masa', replacement, path.stem, count=1)
    return str(path.with_stem(stem if number else f'{path.stem}_{"dense" if dense else suffix}'))


def _masa_node(node: Any) -> Any:
    """Return the first part of a model's config with the name of a MASA model."""
    if isinstance(node, (dict, ConfigDict)):
        if dense_architecture(str(node.get('model_name', ''))):
            return node
        node = [*node.values()]
    if isinstance(node, (list, tuple)):
        return next((found for child in node if (found := _masa_node(child)) is not None), None)
    return None
