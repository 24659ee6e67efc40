"""Compress a dense vision transformer to a MASA model, without training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.convert.record import masa_record, vit_args
from masa_vit.layers import AtomBank, SharedLinear, share_linears
from masa_vit.models.sharing_args import LAYOUT, PROJECTIONS, parse_projections
from masa_vit.models.vision_transformer_masa import MasaVisionTransformer

_logger = logging.getLogger(__name__)

_CHUNK = 1 << 15
"""Columns of the stacked weights that are in float64 at a time: 3 MB for 12 layers, and few enough
that a copy of one row runs in one thread, without waiting for others."""

_ROUNDING = 1e-13
"""Eigenvalues below this share of the largest are rounding: singular values below 3e-7 of it."""

_SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source')
"""Where timm's `pretrained_cfg` says that the weights come from."""


class MatrixPCA(NamedTuple):
    """Atoms and coefficients of one dictionary, ``W_l ~ sum_s c_ls D_s``."""

    atoms: torch.Tensor
    """D (S, out, in), orthonormal as vectors, in the dtype of the weights."""
    coef: torch.Tensor
    """C (L, S), float64: ``c_ls = <D_s, W_l>``."""
    eigenvalues: torch.Tensor
    """(L,), float64, descending: the energy in every direction. Those from S on are lost."""


def compress(
    model: nn.Module, num_atoms: int = 4, projections: str | Sequence[str] = PROJECTIONS
) -> MasaVisionTransformer:
    """Approximate the attention weights of a dense model by atoms: Matrix PCA, no training.

    The weights of one projection in all L layers become S atoms, the best in the least-squares
    sense, and one coefficient per layer and atom. Everything else is copied as it is. This is
    **lossy**: trained attention weights of different layers have little in common, and with S a
    third of L most of their energy is lost. Expect to fine-tune the result.

    The name in `pretrained_cfg` and timm's record of arguments create a model of the same shape
    again, so that `timm.models.save_for_hf` works; it refuses arguments that are classes (the norms
    of CLIP, SwiGLU), which JSON cannot hold. `fold` turns the result back to a dense model.

    Args:
        model: A `VisionTransformer` of timm (ViT, DeiT-3, DINOv2, CLIP and SigLIP towers, ...), on
            any device, in any floating dtype. Left as it is.
        num_atoms: Number of atoms S of each projection, 1 <= S <= depth. S = depth loses nothing and
            saves nothing.
        projections: The projections that share, letters out of 'qkvo'; the others are dense.

    Returns:
        A new MASA model with trainable ('direct') coefficients, on the same device, in the same
        dtype and mode.

    Raises:
        TypeError: If `model` is not timm's `VisionTransformer` itself.
        ValueError: For a model that shares already, a number of atoms or projections out of range,
            blocks without `attn.qkv` and `attn.proj` or of unequal shape, weights that are not finite.
    """
    _check_model(model)
    names = parse_projections(projections)
    masa = _share(model, num_atoms, names)
    weights = _projection_weights(model)
    for name in names:
        bank = cast(AtomBank, masa.banks[name])
        try:
            pca = matrix_pca(weights[name], bank.num_atoms)
        except ValueError as error:
            raise ValueError(f'projection {name!r}: {error}') from None
        bank.atoms = nn.Parameter(pca.atoms)
        for block, row in zip(masa.blocks, pca.coef.to(pca.atoms), strict=True):
            setattr(block.coef, name, nn.Parameter(row.clone()))
    if num_atoms == len(masa.blocks):
        _logger.warning('num_atoms=%d is the number of layers: nothing is saved', num_atoms)
    return masa


@torch.no_grad()
def matrix_pca(weights: Sequence[torch.Tensor], num_atoms: int) -> MatrixPCA:
    """Find the atoms and coefficients with the least squared error over all layers.

    With ``W = [vec W_1 .. vec W_L]`` and the Gram matrix ``W^T W = V Lam V^T`` (L x L, in float64),
    ``D = W V_S Lam_S^(-1/2)`` and ``C = V_S Lam_S^(1/2)``. The squared error is the sum of the
    eigenvalues from S on. The weights are not centred.

    Where the weights span fewer than S directions, the atoms left over are drawn, orthonormal to the
    others, with coefficients 0: so they change nothing, and can be trained.

    Args:
        weights: L matrices (out, in), on one device.
        num_atoms: S, 1 <= S <= L.

    Raises:
        ValueError: If weights hold NaN or infinity.
    """
    first = weights[0]
    gram = torch.zeros(len(weights), len(weights), dtype=torch.float64, device=first.device)
    for _, columns in _columns(weights):
        gram.addmm_(columns, columns.T)
    if bad := [
        index for index, energy in enumerate(gram.diagonal().tolist()) if not energy < 1e300
    ]:
        raise ValueError(f'the weights of layers {bad} are not finite: nothing to approximate')
    values, vectors = torch.linalg.eigh(gram.cpu())  # ascending
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values[:num_atoms] > values[0] * _ROUNDING).sum())
    scale = values[:rank].sqrt()
    coef = torch.zeros(len(weights), num_atoms, dtype=torch.float64, device='cpu')
    coef[:, :rank] = vectors[:, :rank] * scale

    atoms = torch.empty(num_atoms, *first.shape, dtype=first.dtype, device=first.device)
    flat = atoms.view(num_atoms, -1)
    mix = (vectors[:, :rank] / scale).T.to(first.device)  # (rank, L)
    for where, columns in _columns(weights):
        flat[:rank, where] = (mix @ columns).to(first.dtype)
    _complete(flat, rank)
    return MatrixPCA(atoms, coef, values)


def _columns(weights: Sequence[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Go through the stacked weights (L, out * in) by columns, in one float64 buffer."""
    rows = [weight.reshape(-1) for weight in weights]
    size = rows[0].numel()
    buffer = rows[0].new_empty(len(rows), min(size, _CHUNK), dtype=torch.float64)
    for start in range(0, size, _CHUNK):
        stop = min(size, start + _CHUNK)
        columns = buffer[:, : stop - start]
        for column, row in zip(columns, rows, strict=True):
            column.copy_(row[start:stop])
        yield slice(start, stop), columns


def _complete(atoms: torch.Tensor, rank: int) -> None:
    """Draw the rows from `rank` on, orthonormal to those before; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for index in range(rank, len(atoms)):
        drawn = torch.randn(atoms.shape[1], generator=generator, device='cpu').to(atoms.device)
        known = atoms[:index].to(drawn.dtype)
        for _ in range(2):  # once leaves rounding behind
            drawn -= (known @ drawn) @ known
        atoms[index] = drawn / drawn.norm()


def _check_model(model: nn.Module) -> None:
    if any(isinstance(module, SharedLinear) for module in model.modules()):
        raise ValueError(
            f'this {type(model).__name__} shares its weights already: nothing to compress; '
            'masa_vit.fold makes a dense model of it'
        )
    if type(model) is not VisionTransformer:
        raise TypeError(
            "compress takes timm's VisionTransformer itself (timm.models.vision_transformer), got "
            f'{type(model).__name__}. For a wrapper, give the model inside; subclasses and other '
            'architectures are compressed by masa_vit.convert.matrix_pca and masa_vit.layers by hand'
        )


def _projection_weights(model: Any) -> dict[str, list[torch.Tensor]]:
    """Name -> the weights (out, in) of all layers, views into the model's own."""
    return {
        name: [
            block.get_submodule(path).weight.detach().chunk(len(names))[index]
            for block in model.blocks
        ]
        for path, names in LAYOUT.items()
        for index, name in enumerate(names)
    }


def _share(model: Any, num_atoms: int, names: str) -> MasaVisionTransformer:
    """Copy `model` as a MASA model, whose atoms and coefficients are on the meta device."""
    # The weights that atoms will replace are not copied: memory, and time.
    memo: dict[int, Any] = {}
    for block in model.blocks:
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear) and set(LAYOUT.get(path, '')) & set(names):
                memo[id(module.weight)] = nn.Parameter(module.weight.to('meta'))
    masa = copy.deepcopy(model, memo)
    with torch.random.fork_rng(devices=[]):  # draws initial coefficients, which nobody will see
        banks, generator = share_linears(masa.blocks, LAYOUT, {n: n for n in names}, num_atoms)
    masa.__class__ = MasaVisionTransformer
    masa.set_composition('kept')
    masa.banks, masa.generator = banks.train(model.training), generator
    weights = _projection_weights(model)
    for index, (block, dense) in enumerate(zip(masa.blocks, model.blocks, strict=True)):
        block.coef.train(dense.training)
        for path in LAYOUT:
            shared = block.get_submodule(path)
            if isinstance(shared, SharedLinear):
                shared.train(dense.get_submodule(path).training)
                for name in set(shared.names) - set(names):
                    rows = weights[name][index]
                    setattr(shared, f'dense_{name}', nn.Parameter(rows.clone()))
    _rename(masa, model, num_atoms, names)
    return masa


def _rename(masa: Any, model: Any, num_atoms: int, names: str) -> None:
    """Make the records from which timm creates the model again those of the MASA model."""
    if not getattr(model, 'pretrained_cfg', None):
        return
    architecture, args = masa_record(model, num_atoms, names)
    # The place where the dense weights can be had is not the place of these.
    cfg = {k: None if k in _SOURCES else v for k, v in model.pretrained_cfg.items()}
    masa.pretrained_cfg = masa.default_cfg = {**cfg, 'architecture': architecture}
    kept = {k: v for k, v in getattr(model, '_model_args', {}).items() if k not in vit_args(model)}
    masa._model_args = {**kept, **args}
