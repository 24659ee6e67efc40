"""Align the heads of all layers, so that they have more in common for a Matrix PCA to find.

Trained layers order and rotate their heads at random (see `masa_vit.compression.symmetry`), which
costs Matrix PCA energy and the function nothing. No paper does this; the method is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from masa_vit.compression.symmetry import (
    Alignment,
    Allowed,
    allowed,
    apply_alignment,
    balance,
    split_heads,
)
from masa_vit.layers import check_groups

__all__ = [
    'Alignment',
    'Allowed',
    'align',
    'allowed',
    'apply_alignment',
    'gaussian_control',
    'gaussian_like',
]

MODES = ('permutation', 'rotation', 'invertible')

_PAIRS = ('qk', 'vo')
"""Projections whose heads rotate together."""

_TRIAL = 2
"""Sweeps from each start, after which the better one goes on."""


def align(
    weights: Mapping[str, Tensor],
    num_heads: int,
    num_atoms: int | Sequence[int] | Mapping[str, int | Sequence[int]],
    groups: Sequence[Sequence[int]] | None = None,
    mode: str = 'rotation',
    rotate_qk: bool = True,
    rotate_vo: bool = True,
    projections: str = 'qkvo',
    max_iters: int = 50,
    tol: float = 1e-4,
) -> Alignment:
    """Find an alignment under which Matrix PCA captures more of the weights' energy.

    Layers take turns. For the subspace that the PCA finds now, the best order of a layer's heads is
    a linear assignment, and the best rotation in each a Procrustes problem. A layer is moved towards
    what **the other layers** add to its reconstruction: its own part keeps its energy whatever the
    rotation, and would only hold it where it is. So every step is exact, and energy never falls. The
    search starts twice, from the layers as they are and from all aligned to the middle layer of
    their group, and the better end is kept. It finds a local optimum.

    With invertible maps the share of captured energy could be driven to 1 by scaling, and would
    mean nothing. So 'invertible' **balances** each head, ``Q Q^T = K K^T``: the least energy with which
    its product can be written, unique up to the rotations that follow. These shares are of other
    weights, and do not compare with those of the other modes.

    Args:
        weights: 'q', 'k', 'v' (L, H * hd, in) and 'o' (L, out, H * hd). Computed with in float64 on
            the CPU.
        num_heads: H.
        num_atoms: S of every dictionary. A list gives one per group; a mapping gives either for
            each letter of `projections`.
        groups: Layers that share a dictionary. Default: one group.
        mode: 'permutation' of the heads, 'rotation' (that, and orthogonal maps inside the heads) or
            'invertible' (that, after balancing).
        rotate_qk: Whether maps inside Q and K are allowed.
        rotate_vo: Whether maps inside V and O are allowed.
        projections: Those that share, and count; the others move along.
        max_iters: Most sweeps over the layers.
        tol: A sweep that raises the share by less is the last.

    Raises:
        ValueError: For a value out of its range, and weights that are not finite or whose shapes do
            not fit.
    """
    if mode not in MODES:
        raise ValueError(f'mode={mode!r}: expected one of {", ".join(MODES)}')
    if not projections or set(projections) - set('qkvo'):
        raise ValueError(f'projections={projections!r}: expected letters out of qkvo')
    rows = split_heads(weights, num_heads)
    depth, _, head_dim, _ = rows['q'].shape
    chosen = check_groups([range(depth)] if groups is None else groups, depth)
    atoms = _atoms_by_group(num_atoms, projections, len(chosen))
    free = ''
    if mode != 'permutation':
        free = ('qk' if rotate_qk else '') + ('vo' if rotate_vo else '')

    def search(index: int) -> _Search:
        return _Search(rows, chosen[index], atoms[index], free)

    def total() -> float:
        return sum(float(rows[name].square().sum()) for name in projections) or 1.0

    energy = [sum(search(index).energy() for index in range(len(chosen))) / total()]
    eye = torch.eye(head_dim, dtype=torch.float64).expand(depth, num_heads, -1, -1)
    heads = torch.arange(num_heads).repeat(depth, 1)
    maps = {'qk': eye.clone(), 'vo': eye.clone()}
    if mode == 'invertible':
        for pair in _PAIRS:
            if pair in free and set(pair) & set(projections):
                maps[pair] = balance(rows[pair[0]], rows[pair[1]])
        rows = Alignment(heads, maps['qk'], maps['vo']).move(rows)

    histories = []
    gain = tol * total()
    for index, group in enumerate(chosen):
        as_is, aligned = search(index), search(index)
        aligned.start_from(len(group) // 2)
        for start in as_is, aligned:
            start.ascend(min(_TRIAL, max_iters), gain)
        best = max(as_is, aligned, key=lambda start: start.history[-1])
        best.ascend(max_iters - _TRIAL, gain)
        histories.append(best.history)
        where = torch.tensor(group)
        for pair in _PAIRS:
            maps[pair][where] = best.maps[pair] @ maps[pair][where[:, None], best.heads]
        heads[where] = best.heads
    for step in range(max(map(len, histories))):
        energy.append(sum(run[min(step, len(run) - 1)] for run in histories) / total())
    return Alignment(heads, maps['qk'], maps['vo'], tuple(energy))


def gaussian_like(weights: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Gaussian matrices with the shapes and norms of weights (L, out, in); unequal norms count.

    torch's own generator is not drawn from.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in weights.items():
        norms = value.flatten(1).norm(dim=1).double().cpu()
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        drawn[name] = noise * (norms / noise.flatten(1).norm(dim=1))[:, None, None]
    return drawn


def gaussian_control(
    weights: Mapping[str, Tensor], num_heads: int, *args: Any, seed: int = 0, **kwargs: Any
) -> Alignment:
    """Align Gaussian matrices in place of the weights: what freedom captures without structure.

    Each has the shape and the norm of the matrix that it stands for, as unequal norms alone raise
    the captured share. What trained weights have above it is structure.

    Args:
        weights: As for `align`.
        num_heads: H.
        args: Further arguments of `align`.
        seed: Of the matrices.
        kwargs: Further arguments of `align`.

    Returns:
        The alignment, for its `energy`.
    """
    return align(gaussian_like(weights, seed), num_heads, *args, **kwargs)


class _Search:
    """The heads of one group of n layers while they are moved."""

    def __init__(
        self, rows: Mapping[str, Tensor], group: list[int], atoms: dict[str, int], free: str
    ):
        self.rows = {name: value[group] for name, value in rows.items()}  # (n, H, hd, in)
        self.atoms, self.free = atoms, free
        # The rest lose nothing, wherever the heads are.
        self.counted = [name for name, number in atoms.items() if number < len(group)]
        self.grams = {name: self._flat(name) @ self._flat(name).T for name in atoms}
        _, num_heads, head_dim, _ = self.rows['q'].shape
        self.heads = torch.arange(num_heads).repeat(len(group), 1)
        eye = torch.eye(head_dim, dtype=torch.float64)
        self.maps = {pair: eye.repeat(len(group), num_heads, 1, 1) for pair in _PAIRS}
        self.history: list[float] = []
        self.assign, self.done = True, False

    def energy(self) -> float:
        """Sum of the eigenvalues that the atoms keep."""
        return sum(
            float(torch.linalg.eigvalsh(gram)[-self.atoms[name] :].clamp(min=0).sum())
            for name, gram in self.grams.items()
        )

    def start_from(self, reference: int) -> None:
        """Align every layer to one of them."""
        for layer in range(len(self.heads)):
            if layer != reference:
                target = {name: self.rows[name][reference] for name in self.counted}
                self._move(layer, target, assign=True)

    def ascend(self, sweeps: int, gain: float) -> None:
        """Sweep over the layers, at most `sweeps` times, until a sweep gains less than `gain`."""
        self.history = self.history or [self.energy()]
        for _ in range(sweeps):
            if self.done:
                break
            moves = [self._move(i, self._target(i), self.assign) for i in range(len(self.heads))]
            self.history.append(self.energy())
            settled = self.history[-1] - self.history[-2] < gain
            self.done = self.assign and settled and not any(moves)
            # Assignment costs H times what rotation does: pause it while no head moves.
            self.assign = any(moves) or settled

    def _flat(self, name: str) -> Tensor:
        return self.rows[name].flatten(1)

    def _target(self, layer: int) -> dict[str, Tensor]:
        """Return what the other layers add to the reconstruction of one, (H, hd, in) by letter."""
        target = {}
        for name in self.counted:
            kept = torch.linalg.eigh(self.grams[name])[1][:, -self.atoms[name] :]
            weight = kept @ kept[layer]
            weight[layer] = 0
            target[name] = (weight @ self._flat(name)).view_as(self.rows[name][layer])
        return target

    def _move(self, layer: int, target: Mapping[str, Tensor], assign: bool) -> bool:
        """Move a layer's heads to where they agree best with the target; tell if any changed place."""
        here = torch.arange(self.heads.shape[1])
        order = self._order(layer, target) if assign else here
        if moved := not torch.equal(order, here):
            for values in (*self.rows.values(), *self.maps.values(), self.heads):
                values[layer] = values[layer, order]
        for pair in _PAIRS:
            names = [name for name in pair if name in target]
            if pair in self.free and names:
                inner = torch.stack([target[name] @ self.rows[name][layer].mT for name in names])
                left, _, right = torch.linalg.svd(inner.sum(0))
                for values in (*(self.rows[name] for name in pair), self.maps[pair]):
                    values[layer] = left @ right @ values[layer]
        for name, gram in self.grams.items():
            gram[layer] = gram[:, layer] = self._flat(name) @ self._flat(name)[layer]
        return moved

    def _order(self, layer: int, target: Mapping[str, Tensor]) -> Tensor:
        """Return which old head to put in each place."""
        num_heads, head_dim = self.rows['q'].shape[1:3]
        gains = torch.zeros(num_heads, num_heads, dtype=torch.float64)
        for pair in _PAIRS:
            names = [name for name in pair if name in target]
            goals = [target[name] for name in names]
            rows = [self.rows[name][layer] for name in names]
            if pair in self.free and names:
                # In float32: it is most of the work, and a choice needs no more.
                inner = torch.zeros(num_heads * head_dim, num_heads * head_dim)
                for x, y in zip(goals, rows, strict=True):
                    inner.addmm_(x.flatten(0, 1).float(), y.flatten(0, 1).float().T)
                blocks = inner.view(num_heads, head_dim, num_heads, head_dim)
                # The nuclear norm is the inner product after the best rotation.
                gains += torch.linalg.svdvals(blocks.transpose(1, 2)).sum(-1)
            else:
                for x, y in zip(goals, rows, strict=True):
                    gains += x.flatten(1) @ y.flatten(1).T
        here = torch.arange(num_heads)
        order = _assignment(gains)
        better = gains[here, order].sum() - gains.trace() > 1e-5 * gains.abs().max()
        return order if better else here  # a tie, or rounding


def _assignment(gains: Tensor) -> Tensor:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError('aligning heads needs scipy: pip install "masa-vit[train]"') from None
    return torch.as_tensor(linear_sum_assignment(gains.numpy(), maximize=True)[1])


def _atoms_by_group(num_atoms: Any, projections: str, num_groups: int) -> list[dict[str, int]]:
    """Return letter -> S for every group."""
    by_letter = (
        num_atoms if isinstance(num_atoms, Mapping) else dict.fromkeys(projections, num_atoms)
    )
    if missing := set(projections) - set(by_letter):
        raise ValueError(f'num_atoms={num_atoms!r} says nothing of {", ".join(sorted(missing))}')
    lists = {
        name: [value] * num_groups if isinstance(value, int) else list(value)
        for name in projections
        for value in [by_letter[name]]
    }
    if any(len(v) != num_groups or min(v) < 1 for v in lists.values()):
        raise ValueError(
            f'num_atoms={num_atoms!r}: expected numbers of at least 1, or {num_groups} of them, one '
            'per group'
        )
    return [{name: value[index] for name, value in lists.items()} for index in range(num_groups)]
