"""Fold a trained classifier or detector: a config and a checkpoint without atoms."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import save_checkpoint
from torch import nn

import masa_vit
from masa_vit.export.folding import dense_record
from masa_vit.export.parity import TOLERANCE, output_difference
from masa_vit.models import MasaVisionTransformer, dense_architecture
from masa_vit.models.loading import check_dtypes
from masa_vit.models.sources import read_config
from masa_vit.training import DistilledClassifier, ImageClassifier
from masa_vit.training.checkpoint_files import read_checkpoint
from masa_vit.training.configs import load_config
from masa_vit.training.model_building import build_model
from masa_vit.utils.messages import first_lines
from masa_vit.utils.staging import check_file

_TEACHER_ARGS = frozenset(inspect.signature(DistilledClassifier).parameters) - frozenset(
    inspect.signature(ImageClassifier).parameters
)
"""Arguments of a distilled classifier that a plain one does not take."""


def fold_run(
    config: str | Path | Config,
    checkpoint: str | Path,
    out: str | Path,
    force: bool = False,
) -> tuple[Path, Path]:
    """Fold a trained run into a dense model: `OUT/<config>_folded.py` and `OUT/<config>_folded.pth`.

    The model of the new config is built, loaded from the new weights and compared with the old one
    before anything is written.

    Args:
        config: Of the run: path, `masa_vit::...`, or a loaded config.
        checkpoint: A file that training wrote; of a run with EMA, its averaged weights are folded.
        out: The folder for the two files.
        force: Overwrite them.

    Returns:
        The paths of the config and of the checkpoint.

    Raises:
        FileNotFoundError: If config or checkpoint do not exist.
        FileExistsError: If one of the files exists and `force` is not set.
        ValueError: If nothing is shared, the checkpoint does not fit, or outputs differ by more than
            1e-4 of the largest.
    """
    cfg = load_config(config)
    stem = f'{Path(cfg.filename or "model").stem}_folded'
    paths = Path(out) / f'{stem}.py', Path(out) / f'{stem}.pth'
    for path in paths:
        check_file(path, force)
    loaded = read_checkpoint(checkpoint)
    model = build_model(cfg)
    _load(model, loaded['state_dict'], str(checkpoint))
    folded = masa_vit.fold(model)

    new_cfg = dense_config(cfg)
    dense = build_model(new_cfg)
    _load(dense, folded.state_dict(), 'the folded model')
    difference = _difference(model, dense)
    if not difference <= TOLERANCE:
        raise ValueError(
            f'the outputs of the folded model differ by {difference:.3g} of the largest, more than '
            f'{TOLERANCE:g}; '
            'nothing was written'
        )
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    new_cfg.dump(paths[0])
    meta = {**loaded.get('meta', {}), 'cfg': new_cfg.pretty_text}
    content = {'meta': meta, 'state_dict': dense.state_dict()}
    save_checkpoint(content, str(paths[1]), backend_args=dict(backend='atomic'))
    print_log(f'Largest difference of the outputs: {difference:.3g}', 'current')
    return paths


def dense_config(cfg: Config) -> Config:
    """The config of the dense model, without initial weights to load, and without a teacher.

    A 'local-dir:FOLDER' name is replaced by its architecture: the dense model needs no folder.
    """
    new = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename)
    _make_dense(new.model)
    new.load_from, new.resume = None, False
    return new


def _make_dense(node: Any) -> None:
    if isinstance(node, (list, tuple)):
        for child in node:
            _make_dense(child)
    if not isinstance(node, (dict, ConfigDict)):
        return
    kind = node.get('type')
    if getattr(kind, '__name__', kind) == DistilledClassifier.__name__:
        node['type'] = ImageClassifier.__name__
        for key in _TEACHER_ARGS & set(node):
            del node[key]
    _resolve_folder(node)
    if dense_architecture(name := str(node.get('model_name', ''))):
        was = node.get('model_args') or {}
        node['model_name'], args = dense_record(name, was)
        if args.get('norm_layer') != was.get('norm_layer') and callable(args.get('norm_layer')):
            raise ValueError(
                f'the plain timm model takes norms with norm_eps={was["norm_eps"]} as a class only, '
                'which a config cannot hold; masa_vit.fold folds the model itself'
            )
        if 'model_args' in node:
            node['model_args'] = args
        for key in ('init_from', 'init_cfg', 'freeze_atoms'):
            node.pop(key, None)
    for child in node.values():
        _make_dense(child)


def _resolve_folder(node: Any) -> None:
    """Replace the 'local-dir:' name of a MASA model by its architecture and arguments."""
    source, _, folder = str(node.get('model_name', '')).partition(':')
    if source != 'local-dir':
        return
    saved = read_config(folder)
    if dense_architecture(saved['architecture']):
        node['model_name'] = saved['architecture']
        # as in timm, the config overrides the folder
        node['model_args'] = {**saved.get('model_args', {}), **(node.get('model_args') or {})}
        node['model_args'].pop('num_classes', None)  # is set beside model_args, or by the task


def _load(model: nn.Module, state_dict: dict[str, Any], source: str) -> None:
    check_dtypes(model.state_dict(), state_dict, source)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(
            f'{source} does not match the model of the config: {first_lines(error, 8)}'
        ) from error


@torch.no_grad()
def _difference(model: nn.Module, dense: nn.Module) -> float:
    """Largest difference of outputs for noise, of every module that holds a shared transformer."""
    differences = []
    for name, owner in model.named_modules():
        for child in owner.children():
            if isinstance(child, MasaVisionTransformer):
                embed = child.patch_embed
                images = torch.randn(2, embed.proj.in_channels, *embed.img_size)
                expected = _outputs(owner, images)
                differences.append(
                    output_difference(_outputs(dense.get_submodule(name), images), expected)
                )
    return max(differences)


def _outputs(module: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outputs = module(images)  # a backbone's maps, or a classifier's logits
    return outputs if isinstance(outputs, tuple) else (outputs,)
