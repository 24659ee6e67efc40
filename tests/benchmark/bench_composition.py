"""Benchmark the kernels of composition: python -m pytest tests/benchmark/bench_composition.py

Sizes are those of ViT-B/16 with S=4: 12 layers of four 768 x 768 projections. Others by variables:
BENCH_DIM=32 BENCH_DEPTH=4 BENCH_ATOMS=2 python -m pytest tests/benchmark/bench_composition.py
Threads by OMP_NUM_THREADS. The file's name keeps it out of a normal test run.

What composition is held against are floors that no composition can go below: for the forward pass
the copy of all composed weights (read and write the same bytes), for the backward pass reading the
gradients G of all weights and the atoms D and writing the gradients of the atoms.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

from masa_vit.layers.kernels import compose_rows, composition_gradients

pytest.importorskip(
    'pytest_benchmark', reason='needs pytest-benchmark: pip install "masa-vit[dev]"'
)

DIM = int(os.environ.get('BENCH_DIM', 768))
DEPTH = int(os.environ.get('BENCH_DEPTH', 12))
ATOMS = int(os.environ.get('BENCH_ATOMS', 4))
PROJECTIONS = 'qkvo'
ROUNDS = dict(rounds=30, warmup_rounds=3, iterations=1)

pytestmark = pytest.mark.benchmark(disable_gc=True, warmup=False)


@dataclass
class Bank:
    """A projection of all layers; rows are strided where timm stacks q, k and v in one weight."""

    atoms: torch.Tensor  # (S, d, d)
    coef: torch.Tensor  # (L, S)
    rows: torch.Tensor  # (L, d * d), where the composed weights are
    grads: torch.Tensor  # (L, d * d), where their gradients are


@pytest.fixture(scope='module', params=['fp32', 'bf16'])
def banks(request: pytest.FixtureRequest) -> list[Bank]:
    """The four banks; 'bf16': weights and gradients in bfloat16, atoms in float32 as under autocast."""
    dtype = torch.float32 if request.param == 'fp32' else torch.bfloat16
    torch.manual_seed(0)
    size = DIM * DIM
    parts = []
    for stacked in ('qkv', 'o'):
        weights, grads = (torch.randn(DEPTH, len(stacked) * size).to(dtype) for _ in range(2))
        parts += zip(weights.split(size, 1), grads.split(size, 1), strict=True)
    return [
        Bank(torch.randn(ATOMS, DIM, DIM), torch.randn(DEPTH, ATOMS), rows, grads)
        for rows, grads in parts
    ]


@pytest.mark.benchmark(group='forward')
def test_forward_floor_copy_of_the_composed_weights(benchmark, banks):
    copies = [bank.rows.clone() for bank in banks]

    def run() -> None:
        for bank, copy in zip(banks, copies, strict=True):
            copy.copy_(bank.rows)

    benchmark.pedantic(run, **ROUNDS)


@pytest.mark.benchmark(group='forward')
def test_forward_composition_of_all_layers(benchmark, banks):
    def run() -> None:
        for bank in banks:
            compose_rows(bank.rows, bank.coef, bank.atoms)

    benchmark.pedantic(run, **ROUNDS)
    bank = banks[-1]
    expected = (bank.coef @ bank.atoms.flatten(1)).to(bank.rows.dtype)
    torch.testing.assert_close(bank.rows, expected)


@pytest.mark.benchmark(group='backward')
def test_backward_floor_in_kept_memory(benchmark, banks):
    results = [torch.empty_like(bank.atoms) for bank in banks]

    def run() -> None:
        for bank, result in zip(banks, results, strict=True):
            bank.grads.sum()
            result.copy_(bank.atoms)

    benchmark.pedantic(run, **ROUNDS)


@pytest.mark.benchmark(group='backward')
def test_backward_floor_into_new_memory(benchmark, banks):
    """The same with the page faults of a gradient that autograd will own."""

    def run() -> list[torch.Tensor]:
        for bank in banks:
            bank.grads.sum()
        return [bank.atoms.clone() for bank in banks]

    benchmark.pedantic(run, **ROUNDS)


@pytest.mark.benchmark(group='backward')
def test_backward_gradients_of_all_layers(benchmark, banks):
    def run() -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        return [composition_gradients(bank.grads, bank.coef, bank.atoms) for bank in banks]

    grad_coef, grad_atoms = benchmark.pedantic(run, **ROUNDS)[-1]
    bank = banks[-1]
    grads = bank.grads.float()
    scale = DIM * 1e-4  # of a sum over DIM ** 2 products, each of size 1
    torch.testing.assert_close(grad_coef, grads @ bank.atoms.flatten(1).T, atol=scale, rtol=1e-3)
    expected = (bank.coef.T @ grads).view_as(bank.atoms)
    torch.testing.assert_close(grad_atoms, expected, atol=1e-4, rtol=1e-3)
