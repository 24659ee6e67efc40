"""The atom bank: the matrices that the projections of all layers are made of.

Matrix Atom Sharing in Attention (https://arxiv.org/abs/2508.04581) writes the weight of one
projection in layer l as ``W_l = sum_s c_ls D_s``. An `AtomBank` owns the atoms ``D_1 .. D_S`` of
one dictionary. It knows nothing of attention or of images: any family of equally shaped linear
maps can draw on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from masa_vit.layers.context import no_autocast
from masa_vit.layers.workspace import Workspace


@torch.fx.wrap  # one node for every fx tracer: the autocast region depends on a real device
def compose(atoms: torch.Tensor, coef: torch.Tensor) -> torch.Tensor:
    """Mix atoms into one weight: ``W = sum_s c_s D_s`` (MASA, eq. for W_l).

    Runs in the dtype of the atoms even under autocast: a product in bfloat16 would round every
    coefficient to 8 bits. The linear map that follows is autocast as usual.

    Args:
        atoms: Atoms D, (S, out, in).
        coef: Coefficients of one layer, (S,).

    Returns:
        The weight, (out, in), in the dtype of `atoms`.
    """
    num_atoms, out_features, in_features = atoms.shape
    with no_autocast(atoms.device):
        weight = coef.to(atoms.dtype).view(1, num_atoms) @ atoms.view(num_atoms, -1)
    return weight.view(out_features, in_features)


def check_num_atoms(num_atoms: object) -> int:
    """Return a number of atoms as an int (numpy's integers too); ValueError if it is none >= 1."""
    number = None if isinstance(num_atoms, bool) else getattr(num_atoms, '__index__', None)
    if number is None or number() < 1:
        raise ValueError(f'num_atoms must be an integer >= 1, got {num_atoms!r}')
    return number()


class AtomBank(nn.Module):
    """The atoms of one dictionary, and the composition of weights from them.

    The bank is registered once, on the model. Layers that draw on it keep a plain reference to the
    bank (never to its parameter), so that a state dict holds every atom once.
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
        self._workspaces: dict[Hashable, Workspace] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the atoms as `torch.nn.Linear` draws a weight; models apply their own init over it."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.atoms, -bound, bound)

    def compose(self, coef: torch.Tensor) -> torch.Tensor:
        """Compose the weight (out, in) of one layer from its coefficients (S,)."""
        return compose(self.atoms, coef)

    def workspace(self, stack: Hashable) -> Workspace:
        """Return the memory for the layers of one stack that draw on this bank first."""
        return self._workspaces.setdefault(stack, Workspace())

    def refresh(self) -> None:
        """Drop the weights that are kept for evaluation; see `masa_vit.refresh`."""
        for workspace in self._workspaces.values():
            workspace.kept = None

    def train(self, mode: bool = True) -> AtomBank:
        """Set the mode, and drop kept weights."""
        self.refresh()
        if mode != self.training:
            self._workspaces.clear()  # the buffer of the training steps, too
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> AtomBank:
        self._workspaces.clear()  # it would stay on the old device
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Leave kept weights out of copies and pickles."""
        return {**self.__dict__, '_workspaces': {}}

    def extra_repr(self) -> str:
        """Name the sizes in the model's printout."""
        return (
            f'num_atoms={self.num_atoms}, out_features={self.out_features}, '
            f'in_features={self.in_features}'
        )
