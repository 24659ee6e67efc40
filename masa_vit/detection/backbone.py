"""Plain vision transformers of timm, MASA or dense, as backbones of detectors.

Paper: `Exploring Plain Vision Transformer Backbones for Object Detection` (ViTDet)
    - https://arxiv.org/abs/2203.16527
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

from masa_vit.detection.attention import WindowedAttention
from masa_vit.models import create_timm_model, load_weights

_HEAD = ('norm.', 'fc_norm.', 'attn_pool.', 'head.')
"""Parts of a classifier that a backbone lacks, by timm's names."""


@MODELS.register_module()
class MasaViT(BaseModule):
    """A vision transformer of timm that gives maps of stride `patch_size`.

    Class and register tokens are left out, as in ViTDet, and the final norm, for the neck
    normalises. All weights keep timm's names, under `vit.`. The image may have any size: it is padded
    to whole patches, and the position embedding is resampled to the grid.

    A configuration with MASA and one of its dense baseline differ in `model_name` only.
    """

    def __init__(
        self,
        model_name: str = 'vit_base_masa_s4',
        model_args: dict[str, Any] | None = None,
        window_size: int = 14,
        global_attn_indexes: Sequence[int] | None = None,
        pad_windows: bool = True,
        out_indices: int | Sequence[int] = -1,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        freeze_atoms: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        """Build the backbone.

        Args:
            model_name: A timm ViT (of the class `VisionTransformer`), ours or dense.
            model_args: Further arguments of `timm.create_model`: `img_size` (of the stored position
                embedding), `embed_dim`, `depth`, `num_atoms`, ...
            window_size: Side in tokens of the windows in which blocks attend; 0: all are global.
            global_attn_indexes: Blocks that attend to the whole map; default: the last of each
                quarter of the depth (ViTDet's; 2, 5, 8, 11 of 12).
            pad_windows: Pad maps that the windows do not tile; without it they are an error.
            out_indices: Blocks whose output is returned; negative ones count from the end.
            drop_path_rate: Stochastic depth, growing linearly to this rate.
            frozen_stages: -1: nothing is frozen; k: the embeddings and the first k blocks. Blocks
                of a MASA model draw on the same atoms as the later ones, so that their weights
                change all the same unless the atoms are frozen.
            freeze_atoms: Freeze the atoms, and the MLP of 'mlp' coefficients; the coefficients (or
                embeddings) of blocks that are not frozen train on.
            with_cp: Recompute the blocks in the backward pass: less memory, more time.
            init_cfg: `dict(type='Pretrained', checkpoint=..., prefix=...)`, where `checkpoint` is a
                file (a classifier's or detector's checkpoint, `.safetensors`), a folder that
                `masa-vit compress` wrote, a URL, or the name of a timm model with pretrained weights.
                The prefix is found when it is not given.

        Raises:
            ValueError: For an unknown name or argument, or a value outside its range.
            TypeError: If the model is no `VisionTransformer` with timm's plain attention.
        """
        super().__init__(init_cfg)
        self._is_init: bool = False  # mmengine's
        _pretrained(init_cfg)
        self.vit = _create_vit(model_name, model_args or {}, drop_path_rate)
        depth = len(self.vit.blocks)
        self.out_indices = _out_indices(out_indices, depth)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= depth:
            raise ValueError(
                f'MasaViT: frozen_stages={frozen_stages!r}; expected -1 (nothing) to {depth} (the '
                'embeddings and all blocks)'
            )
        self.frozen_stages = frozen_stages
        self.freeze_atoms = freeze_atoms
        self.with_cp = with_cp
        self._set_windows(window_size, global_attn_indexes, pad_windows)
        # blocks after the last output would have parameters without gradients
        self.vit.prune_intermediate_layers(list(self.out_indices), prune_head=False)
        self._freeze()

    @property
    def embed_dim(self) -> int:
        """Channels of the maps."""
        return cast(int, self.vit.embed_dim)

    def _set_windows(self, size: int, global_blocks: Sequence[int] | None, pad: bool) -> None:
        depth = len(self.vit.blocks)
        if not isinstance(size, int) or size < 0:
            raise ValueError(
                f'MasaViT: window_size={size!r}; expected a number of tokens, or 0 for attention '
                'over the whole map in all blocks'
            )
        if global_blocks is None:
            global_blocks = [depth * (i + 1) // 4 - 1 for i in range(4)]
        elif wrong := [i for i in global_blocks if not -depth <= i < depth]:
            raise ValueError(
                f'MasaViT: global_attn_indexes={list(global_blocks)} has {wrong}; expected blocks '
                f'from 0 to {depth - 1}'
            )
        are_global = {i % depth for i in global_blocks}
        for index, block in enumerate(self.vit.blocks):
            block.attn.window_size = 0 if index in are_global else size
            block.attn.pad = pad

    def init_weights(self) -> None:
        """Load the weights of `init_cfg`, and report the outcome.

        timm initialised the model at its creation; nothing is drawn anew.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If it cannot be read, or nothing of it matches.
        """
        found = _pretrained(self.init_cfg)
        if found and not self._is_init:
            source = found['checkpoint']
            weights = None
            if '://' in str(source):
                weights = CheckpointLoader.load_checkpoint(source, map_location='cpu')
            prefix = found.get('prefix') or ''
            report = load_weights(self.vit, source, prefix=prefix, ignore=_HEAD, weights=weights)
            level = logging.WARNING if report.missing or report.unexpected else logging.INFO
            print_log(f'Initial weights of the backbone from {report}', 'current', level)
        self._is_init = True

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Make the maps.

        Args:
            x: Images (B, 3, H, W).

        Returns:
            One map (B, embed_dim, ceil(H / patch_size), ceil(W / patch_size)) per out index.
        """
        vit = self.vit
        x = vit.patch_embed(x)  # (B, h, w, C)
        shape = x.shape
        x = vit.norm_pre(vit._pos_embed(x)).view(shape)
        outs = []
        for index, block in enumerate(vit.blocks):
            if self.with_cp and torch.is_grad_enabled():
                # reentrant checkpointing fails under DDP with parameters that several blocks use
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if index in self.out_indices:
                outs.append(x.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def train(self, mode: bool = True) -> MasaViT:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        vit = self.vit
        if self.frozen_stages < 0:
            return []
        return [vit.patch_embed, vit.pos_drop, vit.norm_pre, *vit.blocks[: self.frozen_stages]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_stages >= 0 and self.vit.pos_embed is not None:
            self.vit.pos_embed.requires_grad_(False)
        banks = getattr(self.vit, 'banks', None)
        if banks is None:  # the dense baseline of a config with freeze_atoms
            return
        if self.freeze_atoms or self.frozen_stages == len(self.vit.blocks):
            banks.requires_grad_(False)
            if self.vit.generator is not None:
                self.vit.generator.requires_grad_(False)
        elif self.frozen_stages > 0:
            print_log(
                f'MasaViT: frozen_stages={self.frozen_stages} keeps the coefficients and biases of '
                'these blocks, but their weights change with the atoms, which all blocks share; '
                'freeze_atoms=True keeps those as well.',
                'current',
                logging.WARNING,
            )


def _create_vit(name: str, model_args: dict[str, Any], drop_path_rate: float) -> Any:
    # as timm has it, before its attention is replaced; drawing no random number of the run
    with torch.random.fork_rng(devices=[]), torch.device('meta'):
        own: Any = create_timm_model(name, model_args, num_classes=0)
    plain = isinstance(own, VisionTransformer) and all(
        type(getattr(block, 'attn', None)) is Attention for block in own.blocks
    )
    if not plain:
        raise TypeError(
            f'MasaViT: model_name {name!r} gives a {type(own).__name__}; expected a vision transformer '
            "of timm's class VisionTransformer with its plain attention, such as 'vit_base_masa_s4' or "
            "'vit_base_patch16_224'"
        )
    vit: Any = create_timm_model(
        name,
        model_args,
        drop_path_rate=drop_path_rate,
        num_classes=0,
        class_token=False,
        reg_tokens=0,
        global_pool='',
        final_norm=False,
        dynamic_img_size=True,
        dynamic_img_pad=True,
        attn_layer=WindowedAttention,
    )
    if tuple(vit.patch_embed.patch_size) != (16, 16):
        print_log(
            f'MasaViT: {name!r} has patches of {tuple(vit.patch_embed.patch_size)} pixels. SimpleFPN, '
            'anchors and RoI extractors of the usual configs assume a map of stride 16: set '
            'model_args=dict(patch_size=16), to which weights are resampled, or their strides.',
            'current',
            logging.WARNING,
        )
    del vit.num_classes  # mmdet's NumClassCheckHook would take it for a head's
    return vit


def _out_indices(out_indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    given = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    wrong = [i for i in given if not isinstance(i, int) or not -depth <= i < depth]
    found = sorted({i % depth for i in given if i not in wrong})
    if wrong or not given or len(found) < len(given):
        raise ValueError(
            f'MasaViT: out_indices={out_indices!r}; expected different blocks from 0 to {depth - 1} '
            f'(or -{depth} to -1, from the end)'
        )
    return tuple(found)


def _pretrained(init_cfg: dict | list[dict] | None) -> dict[str, Any] | None:
    """The one `Pretrained` entry of an `init_cfg`, or None."""
    entries = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
    for entry in entries:
        kind = getattr(entry.get('type'), '__name__', entry.get('type'))
        if kind not in ('Pretrained', 'PretrainedInit') or not entry.get('checkpoint'):
            raise ValueError(
                f'MasaViT: init_cfg={init_cfg!r}; expected dict(type="Pretrained", checkpoint=...) or '
                'None for the initialisation of timm'
            )
    if len(entries) > 1:
        raise ValueError(f'MasaViT: init_cfg has {len(entries)} entries; expected one')
    return dict(entries[0]) if entries else None
