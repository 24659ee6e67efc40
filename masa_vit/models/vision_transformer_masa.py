"""Vision transformers whose attention weights are shared across layers (MASA), for timm.

Paper: `Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning`
    - https://arxiv.org/abs/2508.04581

The forward path is timm's: `MasaVisionTransformer` is timm's `VisionTransformer` in which the
linear maps of the attention are `SharedLinear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, get_init_weights_vit
from torch import nn

from masa_vit.layers import (
    COMPOSITIONS,
    AtomBank,
    CoefficientSource,
    FrozenCoefficients,
    SharedLinear,
    assign_coefficients,
    composing,
    draw_coefficients,
    refresh,
    share_linears,
)
from masa_vit.models.checkpoint import DENSE_INTO_MASA, adapt_state_dict, checkpoint_filter_fn

__all__ = ['MasaVisionTransformer']

PROJECTIONS = 'qkvo'
"""The projections of an attention layer, in the order in which they always stand."""

LAYOUT = {'attn.qkv': 'qkv', 'attn.proj': 'o'}
"""Linear map of timm's block -> the projections that its output stacks."""


class MasaVisionTransformer(VisionTransformer):
    """timm's vision transformer with attention weights composed from atoms shared by all layers."""

    def __init__(
        self,
        *args: Any,
        num_atoms: int = 4,
        projections: str | Sequence[str] = PROJECTIONS,
        dictionaries: Sequence[str] | None = None,
        coefficients: str = 'direct',
        coef: Any = None,
        coef_embed_dim: int = 64,
        coef_hidden_dim: int = 64,
        composition: str = 'kept',
        weight_init: str = '',
        **kwargs: Any,
    ) -> None:
        """Build the model.

        Args:
            args: As `timm.models.VisionTransformer`.
            num_atoms: Number of atoms S of each dictionary, 1 <= S <= depth.
            projections: The projections that share, letters out of 'qkvo'; the others are dense.
            dictionaries: Which projections draw on a common dictionary, e.g. ``('qv', 'k', 'o')``.
                Default: each projection has its own (the paper's choice).
            coefficients: Source of the coefficients: 'direct' (trainable), 'mlp' (the paper's:
                block embeddings through a three-layer MLP) or 'frozen' (given by `coef`).
            coef: For 'frozen': C (L, S) for all projections, or a dict from letter to C. Lists
                travel with the model's configuration (`save_for_hf`), tensors do not.
            coef_embed_dim: For 'mlp': size of the embedding of a block.
            coef_hidden_dim: For 'mlp': width of the MLP.
            composition: When weights are composed; see `set_composition`. No part of the
                architecture: the parameters and (to rounding) the output are the same.
            weight_init: As in timm; atoms get the init of the dense weights that they stand for.
            kwargs: As `timm.models.VisionTransformer`.

        Raises:
            ValueError: For a value outside its range, named with what was expected.
        """
        super().__init__(*args, weight_init='skip', **kwargs)
        self.set_composition(composition)
        projections = parse_projections(projections)
        if self.fix_init and coefficients == 'frozen' and 'o' in projections:
            raise ValueError(
                "fix_init=True scales the output projections by depth, coefficients='frozen' keeps "
                'them as given: scale the rows of `coef` for o by hand, by (2 (l + 1)) ** -0.5'
            )
        self.banks, self.generator = share_linears(
            self.blocks,
            LAYOUT,
            _parse_dictionaries(dictionaries, projections),
            num_atoms,
            coefficients,
            None if coef is None else _parse_coef(coef, projections),
            coef_embed_dim,
            coef_hidden_dim,
        )
        self.weight_init_mode = 'reset' if weight_init == 'skip' else weight_init
        if weight_init != 'skip':
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = '', needs_reset: bool = True) -> None:
        """Initialise as timm does, the atoms like the dense weights that they stand for.

        Atom s of a dictionary starts as the weight that layer s of the dense model would have had,
        and C has unit rows, so that Var(W_l) equals that of the dense model (ours; the paper does
        not describe its init).
        """
        super().init_weights(mode, needs_reset=needs_reset)
        mode = mode or self.weight_init_mode
        init_dense = get_init_weights_vit(mode)
        for index, block in enumerate(self.blocks):
            for path in LAYOUT:
                shared = block.get_submodule(path)
                if isinstance(shared, SharedLinear):
                    _init_shared_linear(shared, f'blocks.{index}.{path}', index, init_dense)
        num_atoms = {key: cast(AtomBank, bank).num_atoms for key, bank in self.banks.items()}
        coefs = draw_coefficients({key: key for key in num_atoms}, num_atoms, len(self.blocks))
        if self.fix_init and 'o' in coefs:
            scales = [_fix_init_scale(index) for index in range(len(self.blocks))]
            coefs['o'] = coefs['o'] / torch.tensor(scales, device='cpu').unsqueeze(1)
        for source in self._sources():
            if isinstance(source, FrozenCoefficients):
                source.reset_parameters()
        assign_coefficients(self._sources(), coefs)

    def fix_init_weight(self) -> None:
        """Scale the weights that write to the residual stream by depth, as timm does.

        A shared output projection is scaled through its coefficients, in `init_weights`.
        """
        with torch.no_grad():
            for index, block in enumerate(self.blocks):
                block.mlp.fc2.weight.div_(_fix_init_scale(index))
                if isinstance(block.attn.proj, nn.Linear):
                    block.attn.proj.weight.div_(_fix_init_scale(index))

    def set_composition(self, composition: str) -> None:
        """Choose when weights are composed.

        Args:
            composition: 'kept' (default, fastest): the weights of all layers at once in each
                forward pass; in evaluation they are kept until a parameter changes (see
                `masa_vit.refresh` for changes that cannot be seen). 'joint': the same, and never
                kept. 'layerwise' (smallest): each layer's when it is called, and once more in the
                backward pass, never more than one at a time.

        Raises:
            ValueError: For another value.
        """
        if composition not in COMPOSITIONS:
            raise ValueError(
                f'composition={composition!r} is unknown, expected one of {COMPOSITIONS}'
            )
        if composition != 'kept':
            refresh(self)
        self.composition = composition

    def composing(self, x: torch.Tensor) -> AbstractContextManager[Any]:
        """Open the scope of a forward pass over the blocks, in which weights are composed together.

        `forward_features` and `forward_intermediates` do; a loop of your own over `blocks` works
        without it, only slower.

        Args:
            x: An input of the pass, by which tracing is recognised.
        """
        return composing(self.blocks, LAYOUT, x, self.composition)

    def forward_features(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As timm's, with the weights of all layers composed together."""
        with self.composing(x):
            return super().forward_features(x, *args, **kwargs)

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's, with the weights of all layers composed together."""
        with self.composing(x):
            return super().forward_intermediates(x, *args, **kwargs)

    def _sources(self) -> list[CoefficientSource]:
        return [block.coef for block in self.blocks]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """timm's set, and everything that makes the coefficients.

        Atoms decay like the weights that they stand for. Decay of the coefficients would shrink
        whole layers at once (no decay on them also in Savarese & Maire, ICLR 2019).
        """
        names = {
            f'blocks.{index}.coef.{name}'
            for index, block in enumerate(self.blocks)
            for name, _ in block.coef.named_parameters()
        }
        if self.generator is not None:
            names |= {f'generator.{name}' for name, _ in self.generator.named_parameters()}
        return super().no_weight_decay() | names

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups, with the atoms (and the generator) in the group of the middle block.

        All layers draw on the atoms: with layer-wise learning rate decay the middle block has the
        geometric mean of the blocks' rates. Coefficients go with their block.
        """
        groups = super().group_matcher(coarse)
        middle = (r'^(?:banks|generator)\.', (len(self.blocks) // 2,))
        return {**groups, 'blocks': [*groups['blocks'], middle]}

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = '') -> None:
        """Refuse JAX checkpoints (.npz), by which timm loads dense models."""
        raise ValueError(f'{checkpoint_path!r} is a dense checkpoint. {DENSE_INTO_MASA}')

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse or adapt checkpoints of another kind, by whichever way they are loaded."""
        adapt_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _fix_init_scale(index: int) -> float:
    return math.sqrt(2.0 * (index + 1))


@torch.no_grad()
def _init_shared_linear(
    shared: SharedLinear, path: str, index: int, init_dense: Callable[..., None]
) -> None:
    """Initialise bias and dense rows of a layer and, in the first S layers, one atom per bank."""
    like = next(iter(shared.banks.values())).atoms
    dense = nn.Linear(
        shared.in_features,
        shared.out_features,
        bias=shared.bias is not None,
        device=like.device,
        dtype=like.dtype,
    )
    init_dense(dense, path)
    if shared.bias is not None:
        shared.bias.copy_(dense.bias)
    written: set[AtomBank] = set()
    for name, rows in zip(shared.names, dense.weight.split(shared.sizes), strict=True):
        bank = shared.banks.get(name)
        if bank is None:
            getattr(shared, f'dense_{name}').copy_(rows)
        elif index < bank.num_atoms and bank not in written:
            bank.atoms[index].copy_(rows)
            written.add(bank)


def parse_projections(projections: str | Sequence[str]) -> str:
    """Check a choice of projections, and put them in order.

    Raises:
        ValueError: If they are not different letters out of `PROJECTIONS`.
    """
    letters = list(projections)
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(PROJECTIONS):
        raise ValueError(
            f'projections={projections!r} is not valid, expected different letters out of '
            f"{PROJECTIONS!r}, e.g. 'qkvo' or 'qkv'"
        )
    return ''.join(name for name in PROJECTIONS if name in letters)


def _parse_dictionaries(dictionaries: Sequence[str] | None, projections: str) -> dict[str, str]:
    if dictionaries is None:
        dictionaries = list(projections)
    if isinstance(dictionaries, str) or sorted(''.join(dictionaries)) != sorted(projections):
        raise ValueError(
            f'dictionaries={dictionaries!r} is not valid, expected a list that names each shared '
            f"projection ({projections!r}) once, e.g. ('qv', 'k', 'o') for a dictionary common to "
            'q and v'
        )
    ordered = [''.join(sorted(names, key=PROJECTIONS.index)) for names in dictionaries]
    return {names: names for names in ordered}


def _parse_coef(coef: Any, projections: str) -> dict[str, torch.Tensor]:
    of_name = coef if isinstance(coef, Mapping) else dict.fromkeys(projections, coef)
    return {
        name: torch.as_tensor(rows, dtype=torch.float32, device='cpu')
        for name, rows in of_name.items()
    }


def _cfg(url: str = '', **kwargs: Any) -> dict[str, Any]:
    return {
        'url': url,
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': None,
        'crop_pct': 0.9,
        'interpolation': 'bicubic',
        'fixed_input_size': True,
        'mean': IMAGENET_INCEPTION_MEAN,
        'std': IMAGENET_INCEPTION_STD,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2508.04581',
        'paper_name': 'Share Your Attention',
        **kwargs,
    }


SIZES: dict[str, dict[str, Any]] = {
    'tiny': {'embed_dim': 192, 'depth': 12, 'num_heads': 3},
    'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
}
"""Shapes of timm's `vit_<size>_patch16_224`."""

SHARINGS: dict[str, dict[str, Any]] = {
    **{f'masa_s{num}': {'num_atoms': num, 'projections': 'qkvo'} for num in (2, 4, 6, 8)},
    'masa_qkv_s4': {'num_atoms': 4, 'projections': 'qkv'},
}
"""Suffix of a model's name -> what is shared."""

default_cfgs = generate_default_cfgs(
    {f'vit_{size}_{sharing}': _cfg() for size in SIZES for sharing in SHARINGS}
)


def dense_architecture(name: str) -> str:
    """Return the timm architecture that a MASA architecture folds to.

    ``vit_base_masa_s4``, or short ``vit_b_masa_s4``, -> ``vit_base_patch16_224``; '' for a name that
    is not one of ours.
    """
    size = next(
        (s for s in SIZES if name.startswith((f'vit_{s}_masa_', f'vit_{s[0]}_masa_'))), None
    )
    return f'vit_{size}_patch16_224' if size else ''


def _create_vision_transformer_masa(
    variant: str, pretrained: bool = False, **kwargs: Any
) -> MasaVisionTransformer:
    out_indices = kwargs.pop('out_indices', 3)
    return build_model_with_cfg(
        MasaVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={'out_indices': out_indices, 'feature_cls': 'getter'},
        **kwargs,
    )


def _register(size: str, sharing: str) -> None:
    """Register ``vit_<size>_<sharing>`` and its short name, e.g. ``vit_b_masa_s4``."""
    name = f'vit_{size}_{sharing}'
    model_args = {'patch_size': 16, **SIZES[size], **SHARINGS[sharing]}

    def create(pretrained: bool = False, **kwargs: Any) -> MasaVisionTransformer:
        return _create_vision_transformer_masa(name, pretrained, **{**model_args, **kwargs})

    def create_short(pretrained: bool = False, **kwargs: Any) -> MasaVisionTransformer:
        return create(pretrained, **kwargs)

    what = f'ViT-{size.capitalize()}/16, {sharing.replace("_", " ")}'
    for fn, fn_name in ((create, name), (create_short, f'vit_{size[0]}_{sharing}')):
        fn.__name__ = fn.__qualname__ = fn_name
        fn.__doc__ = f'{what} (MASA, https://arxiv.org/abs/2508.04581).'
        globals()[fn_name] = register_model(fn)


for _size in SIZES:
    for _sharing in SHARINGS:
        _register(_size, _sharing)
