"""Atoms: the matrices that compose the weights of several layers.

Matrix Atom Sharing in Attention (https://arxiv.org/abs/2508.04581) writes the weight of one
projection in layer l as ``W_l = sum_s c_ls D_s``. An `AtomBank` owns the atoms ``D_1 .. D_S`` of
one dictionary, for any set of equally shaped linear layers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast on `device`, if it is enabled there."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


NOT_MATERIALIZED = (
    'atoms, coefficients or weights of the layer are on the meta device, its input is not: load '
    'weights first, or attach offloading hooks to the whole model'
)


@torch.fx.wrap  # one node in traced graphs: the autocast region depends on a real device
def compose(coef: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Compose weights from atoms: ``W = sum_s c_s D_s`` (MASA, the equation for W_l).

    Runs in the dtype of the atoms even under autocast, since a product in bfloat16 would round every
    coefficient to 8 bits. The linear layer casts the result.

    Args:
        coef: Coefficients of one layer (S,), of several (L, S), or of the rows of one (S, out, 1).
        atoms: Atoms D, (S, out, in).

    Returns:
        The weight (out, in), or the weights (L, out, in), in the dtype of `atoms`.

    Raises:
        RuntimeError: If only the atoms are on the meta device, where torch would return garbage.
    """
    if atoms.is_meta and not coef.is_meta:
        raise RuntimeError(NOT_MATERIALIZED)
    with no_autocast(atoms.device):
        if coef.ndim == 3:
            return torch.einsum('so,soi->oi', coef.squeeze(-1).to(atoms.dtype), atoms)
        return (coef.to(atoms.dtype) @ atoms.flatten(1)).unflatten(-1, atoms.shape[1:])


def check_num_atoms(num_atoms: object) -> int:
    """Return a number of atoms as an int (NumPy integers too); ValueError if it is not >= 1."""
    number = None if isinstance(num_atoms, bool) else getattr(num_atoms, '__index__', None)
    if number is None or number() < 1:
        raise ValueError(f'num_atoms must be an integer >= 1, got {num_atoms!r}')
    return number()


class AtomBank(nn.Module):
    """The atoms of one dictionary; calling it composes a weight.

    A bank is registered once, in `SharedBlocks`. Layers call it as a module, so that hooks on it
    (FSDP, offloading, pruning) run.
    """

    def __init__(
        self,
        num_atoms: int,
        out_features: int,
        in_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create `num_atoms` matrices of shape (`out_features`, `in_features`).

        Raises:
            ValueError: If `num_atoms` is not a positive integer.
        """
        super().__init__()
        self.num_atoms = num_atoms = check_num_atoms(num_atoms)
        self.out_features = out_features
        self.in_features = in_features
        self.atoms = nn.Parameter(
            torch.empty(num_atoms, out_features, in_features, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the atoms as `torch.nn.Linear` initializes a weight."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.atoms, -bound, bound)

    def forward(self, coef: torch.Tensor) -> torch.Tensor:
        """Compose weights: (S,) or (S, out, 1) -> (out, in), (L, S) -> (L, out, in)."""
        return compose(coef, self.atoms)

    def extra_repr(self) -> str:
        """Return the sizes, for the printout of a model."""
        return (
            f'num_atoms={self.num_atoms}, out_features={self.out_features}, '
            f'in_features={self.in_features}'
        )
