"""The arithmetic of composition for many layers at once, on plain tensors and without autograd.

``W = C D`` and its gradients, ``dD = C^T dW`` and ``dC = dW D^T``, with S around 4 are bound by
memory, so what counts is how often each byte is touched: the products read and write their operands
where they lie (`out=`, strided rows), and nothing of the size of all weights is copied or cast.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_PIECE = 2**21
"""Elements of a float32 intermediate, small enough for a cache."""

_RUN = 8192
"""Columns of one partial sum of dC: BLAS does not parallelise over so long a common dimension."""


def compose_rows(out: torch.Tensor, coef: torch.Tensor, atoms: torch.Tensor) -> None:
    """Write ``C D`` into `out`: one composed weight per row.

    Computed in the dtype of the atoms. An `out` of lower precision is rounded to piece by piece,
    which gives what composing everything and casting it would give, without that copy.

    Args:
        out: (L, out * in); rows may be strided, their elements lie together.
        coef: Coefficients C, (L, S).
        atoms: Atoms D, (S, out, in).
    """
    flat = atoms.reshape(len(atoms), -1)
    coef = coef.to(flat.dtype)
    if out.dtype == flat.dtype:
        torch.mm(coef, flat, out=out)
        return
    for columns in _pieces(*out.shape):
        out[:, columns] = torch.mm(coef, flat[:, columns])


def composition_gradients(
    grads: torch.Tensor,
    coef: torch.Tensor,
    atoms: torch.Tensor,
    need_coef: bool = True,
    need_atoms: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `compose_rows` from those of the weights, in the dtype of the atoms.

    Args:
        grads: dW, (L, out * in); rows may be strided, as for `compose_rows`.
        coef: C, (L, S).
        atoms: D, (S, out, in).
        need_coef: Whether dC is wanted.
        need_atoms: Whether dD is wanted.

    Returns:
        dC (L, S) and dD (S, out, in), None where not wanted.
    """
    flat = atoms.reshape(len(atoms), -1)
    coef = coef.to(flat.dtype)
    grad_coef = grad_flat = None
    same = grads.dtype == flat.dtype
    for columns in [slice(None)] if same else _pieces(*grads.shape):
        piece = grads if same else grads[:, columns].to(flat.dtype)
        if need_atoms:
            if grad_flat is None:
                grad_flat = torch.empty_like(flat)
            _outer_sum(coef, piece, grad_flat[:, columns])
        if need_coef:
            products = _row_products(piece, flat[:, columns])
            grad_coef = products if grad_coef is None else grad_coef + products
    return grad_coef, None if grad_flat is None else grad_flat.view(atoms.shape)


def _pieces(rows: int, length: int) -> Iterator[slice]:
    step = max(_PIECE // rows, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _outer_sum(coef: torch.Tensor, grads: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``C^T dW`` into `out` (S, n)."""
    if len(coef) == 1:  # BLAS is half as fast as a plain product here
        torch.mul(coef.T, grads, out=out)
    else:
        torch.mm(coef.T, grads, out=out)


def _row_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products (L, S) of the rows of `a` (L, n) and `b` (S, n), n large."""
    runs = a.shape[1] // _RUN
    whole = runs * _RUN
    if not runs:
        return a @ b.T
    rest = a[:, whole:] @ b[:, whole:].T
    of_a = a[:, :whole].unflatten(1, (runs, _RUN)).transpose(0, 1)
    of_b = b[:, :whole].unflatten(1, (runs, _RUN)).permute(1, 2, 0)
    return torch.bmm(of_a, of_b).sum(0) + rest
