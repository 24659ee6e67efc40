"""Vision transformers whose attention weights are shared across layers (MASA), for timm.

Paper: `Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning`
    - https://arxiv.org/abs/2508.04581

The forward path is timm's: `MasaVisionTransformer` is timm's `VisionTransformer` in which the
linear layers of the attention are `SharedLinear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import get_norm_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, get_init_weights_vit
from torch import nn

from masa_vit.layers import (
    AtomBank,
    CoefficientGenerator,
    CoefficientSource,
    Dictionary,
    FrozenCoefficients,
    SharedBlocks,
    SharedLinear,
    assign_coefficients,
    draw_coefficients,
    read_dictionaries,
)
from masa_vit.models.checkpoint_filter import (
    DENSE_INTO_MASA,
    adapt_state_dict,
    checkpoint_filter_fn,
)
from masa_vit.models.initialisation import (
    OUTPUTS,
    atoms_of,
    fix_init_scale,
    init_shared_linear,
    scale_own,
)
from masa_vit.models.schemes import scheme_settings
from masa_vit.models.sharing_args import PROJECTIONS, NumAtoms, ResidualRank, share_blocks

__all__ = ['MasaVisionTransformer']


class MasaVisionTransformer(VisionTransformer):
    """timm's vision transformer with attention weights composed from atoms shared by all layers."""

    blocks: Any

    def __init__(
        self,
        *args: Any,
        num_atoms: NumAtoms = 4,
        projections: str | Sequence[str] = PROJECTIONS,
        dictionaries: Sequence[str] | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        residual_rank: ResidualRank = 0,
        mlp_num_atoms: int = 0,
        tie: str = '',
        num_kv_heads: int | None = None,
        coefficients: str = 'direct',
        coef: Any = None,
        coef_embed_dim: int = 64,
        coef_hidden_dim: int = 64,
        norm_eps: float | None = None,
        weight_init: str = '',
        **kwargs: Any,
    ) -> None:
        """Build the model.

        Args:
            args: As `timm.models.VisionTransformer`.
            num_atoms: Number of atoms S of each dictionary, at most the number of weights that it
                serves. A list gives the number for each group of layers, a dict from dictionary to
                one or the other. 0: no dictionary, each weight is ``U_l V_l`` of rank `residual_rank`.
            projections: The projections that share, letters out of 'qkvo'; the others are dense. Of
                projections that `tie` joins, the first names the shared weight.
            dictionaries: Which projections draw on a common dictionary, e.g. ``('qv', 'k', 'o')``.
                Default: one for each projection (the paper's choice).
            groups: Lists of layers that share with each other only: a dictionary for each group (the
                paper's layer groups), e.g. ``[[0], [1, 2, 3, 4], [5]]``. Default: one group.
            residual_rank: Rank k of a low-rank residual of each layer's weight, as in the paper's
                local refinement: ``W_l = sum_s c_ls D_s + U_l V_l``, 2 k d parameters. A dict from
                letter to k, or to a list of one for each layer. It starts at zero.
            mlp_num_atoms: S of the dictionaries of the MLP, one for fc1 and one for fc2; 0: dense.
            tie: Projections with one weight inside a layer: 'qkv', 'qk' or 'kv'. Biases stay.
            num_kv_heads: Heads of K and V in grouped-query attention, a divisor of `num_heads`. Each
                serves ``num_heads / num_kv_heads`` heads of Q. Biases stay (they do not add to the
                functions that the layer can compute: that of K cancels in the softmax, that of V is
                absorbed by that of O).
            coefficients: Source of the coefficients: 'direct' (trainable), 'channel' (trainable, one
                for each row of a weight, S d numbers a layer), 'mlp' (the paper's: block embeddings
                through a three-layer MLP) or 'frozen' (given by `coef`).
            coef: For 'frozen': C (L, S) for all projections, or a dict from name (q, k, v, o,
                fc1, fc2) to C. Lists are saved with the model's configuration (`save_for_hf`), tensors
                are not.
            coef_embed_dim: For 'mlp': size of the embedding of a block.
            coef_hidden_dim: For 'mlp': width of the MLP.
            norm_eps: Epsilon of the norms, where it differs from that of `norm_layer` (1e-5 in models
                compressed from CLIP): a `norm_layer` with its own epsilon does not fit into JSON.
            weight_init: As in timm; atoms start as dense weights do.
            kwargs: As `timm.models.VisionTransformer`.

        Raises:
            ValueError: For a value outside its range.
        """
        if norm_eps is not None:
            norm_layer = get_norm_layer(kwargs.get('norm_layer') or 'layernorm')
            kwargs['norm_layer'] = partial(norm_layer, eps=norm_eps)
        super().__init__(*args, weight_init='skip', **kwargs)
        if self.fix_init and coefficients == 'frozen' and 'o' in projections:
            raise ValueError(
                "fix_init=True scales the output projections by depth, coefficients='frozen' keeps "
                'them as given: scale the rows of `coef` for o by hand, by (2 (l + 1)) ** -0.5'
            )
        self.blocks = share_blocks(
            self.blocks,
            num_atoms=num_atoms,
            projections=projections,
            dictionaries=dictionaries,
            groups=groups,
            residual_rank=residual_rank,
            mlp_num_atoms=mlp_num_atoms,
            tie=tie,
            num_kv_heads=num_kv_heads,
            coefficients=coefficients,
            coef=coef,
            coef_embed_dim=coef_embed_dim,
            coef_hidden_dim=coef_hidden_dim,
        )
        self.weight_init_mode = 'reset' if weight_init == 'skip' else weight_init
        if weight_init != 'skip':
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = '', needs_reset: bool = True) -> None:
        """Initialize as timm does, the atoms as dense weights.

        Atom s of a dictionary starts as the weight that layer s of the dense model would have had,
        and C has unit rows, so that Var(W_l) equals that of the dense model (ours; the paper does
        not describe its init).
        """
        super().init_weights(mode, needs_reset=needs_reset)
        mode = mode or self.weight_init_mode
        init_dense = get_init_weights_vit(mode)
        dictionaries = self.dictionaries
        for index, block in enumerate(self.blocks):
            scale = 1 / fix_init_scale(index) if self.fix_init else 1.0
            for path, shared in block.named_modules():
                if isinstance(shared, SharedLinear):
                    atoms = atoms_of(index, shared, dictionaries)
                    init_shared_linear(shared, f'blocks.{index}.{path}', atoms, init_dense)
                    if path in OUTPUTS:
                        scale_own(shared, scale)
        for owner in ('attn', 'mlp'):
            sources = [
                coef for b in self.blocks if (coef := getattr(getattr(b, owner), 'coef', None))
            ]
            if sources:
                self._reset_coefficients(sources, dictionaries)

    def _reset_coefficients(
        self, sources: list[CoefficientSource], dictionaries: dict[str, Dictionary]
    ) -> None:
        """Draw the coefficients of the attentions, or of the MLPs, of all blocks."""
        names = sources[0].num_atoms
        own = {key: value for key, value in dictionaries.items() if value.names[0] in names}
        coefs = draw_coefficients(own, len(sources))
        if self.fix_init:
            for name in {'o', 'fc2'} & set(coefs):
                coefs[name] = [row / fix_init_scale(i) for i, row in enumerate(coefs[name])]
        for source in sources:
            if isinstance(source, FrozenCoefficients):
                source.reset_parameters()
        assign_coefficients(sources, coefs)

    @property
    def banks(self) -> nn.ModuleDict:
        """Name -> `AtomBank`: ``blocks.attn_banks``."""
        return getattr(self.blocks, 'attn_banks', nn.ModuleDict())

    @property
    def generator(self) -> CoefficientGenerator | None:
        """The coefficient MLP ``blocks.attn_generator`` of 'mlp', else None."""
        return getattr(self.blocks, 'attn_generator', None)

    @property
    def dictionaries(self) -> dict[str, Dictionary]:
        """Name -> the projections, layers and number of atoms of a dictionary."""
        return read_dictionaries(self.blocks)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; refuse blocks that would lose their banks."""
        if name == 'blocks' and isinstance(value, nn.Module):
            layers = [m for m in value.modules() if isinstance(m, SharedLinear)]
            has_banks = any(isinstance(module, AtomBank) for module in value.modules())
            if any(layer.bank_of for layer in layers) and not has_banks:
                raise TypeError(
                    f'these blocks share weights, and a {type(value).__name__} of them has no banks: '
                    'use a slice of model.blocks, or SharedBlocks(blocks, model.blocks.shared)'
                )
        super().__setattr__(name, value)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Prune as timm does, and drop the banks without a user."""
        indices = super().prune_intermediate_layers(*args, **kwargs)
        if isinstance(self.blocks, SharedBlocks):  # else reparameterized
            self.blocks.drop_unused_banks()
        return indices

    def fix_init_weight(self) -> None:
        """Scale the weights that write to the residual stream by depth, as timm does.

        Shared layers are scaled in `init_weights`.
        """
        with torch.no_grad():
            for index, block in enumerate(self.blocks):
                for path in OUTPUTS:
                    layer = block.get_submodule(path)
                    if isinstance(layer, nn.Linear):
                        layer.weight.div_(fix_init_scale(index))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Add the parameters of the coefficients to timm's set.

        Atoms decay as dense weights do. Decay of the coefficients would shrink whole layers at once
        (Savarese & Maire, ICLR 2019, do not decay them either).
        """
        makers = (CoefficientSource, CoefficientGenerator)
        return super().no_weight_decay() | {
            f'{path}.{name}'
            for path, module in self.named_modules()
            if isinstance(module, makers)
            for name, _ in module.named_parameters()
        }

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Add the atoms (and the generator) to timm's group of the middle block.

        All layers draw on the atoms: with layer-wise learning rate decay the middle block has the
        geometric mean of the blocks' rates. Coefficients go with their block.
        """
        groups = super().group_matcher(coarse)
        middle = (r'^blocks\.(?:attn|mlp)_(?:banks|generator)\.', (len(self.blocks) // 2,))
        return {**groups, 'blocks': [*groups['blocks'], middle]}

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = '') -> None:
        """Refuse JAX checkpoints (.npz), which timm loads into dense models."""
        raise ValueError(f'{checkpoint_path!r} is a dense checkpoint. {DENSE_INTO_MASA}')

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adapt or refuse checkpoints of another form, on every way of loading."""
        adapt_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
"""Suffix of a model's name -> arguments of the sharing."""

default_cfgs = generate_default_cfgs(
    {f'vit_{size}_{sharing}': _cfg() for size in SIZES for sharing in SHARINGS}
)


def dense_architecture(name: str) -> str:
    """Return the timm architecture that a MASA architecture folds to.

    ``vit_base_masa_s4``, or short ``vit_b_masa_s4``, -> ``vit_base_patch16_224``; '' for other names.
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

    def create(
        pretrained: bool = False, scheme: str | None = None, **kwargs: Any
    ) -> MasaVisionTransformer:
        args = {**model_args, **kwargs}
        if scheme is not None:
            of_scheme = scheme_settings(scheme, args['depth'], args['num_atoms'], args['num_heads'])
            args = {**model_args, **of_scheme, **kwargs}
        return _create_vision_transformer_masa(name, pretrained, **args)

    def create_short(pretrained: bool = False, **kwargs: Any) -> MasaVisionTransformer:
        return create(pretrained, **kwargs)

    title = f'ViT-{size.capitalize()}/16, {sharing.replace("_", " ")}'
    for fn, fn_name in ((create, name), (create_short, f'vit_{size[0]}_{sharing}')):
        fn.__name__ = fn.__qualname__ = fn_name
        fn.__doc__ = f'{title} (MASA, https://arxiv.org/abs/2508.04581).'
        globals()[fn_name] = register_model(fn)


for _size in SIZES:
    for _sharing in SHARINGS:
        _register(_size, _sharing)
