"""Two processes on the CPU train as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import masa_vit  # noqa: F401  (registers the models, also in spawned processes)

MODEL = {
    'model_name': 'vit_tiny_masa_s2',
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 32,
    'depth': 3,
    'num_heads': 2,
}


def create(checkpointing: bool, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(**MODEL, **kwargs)
    model.set_grad_checkpointing(checkpointing)
    return model


def train(model: nn.Module, data: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


CASES = {
    'ddp': ('ddp', {'checkpointing': False}),
    'ddp, mlp': ('ddp', {'checkpointing': True, 'coefficients': 'mlp'}),
    'fsdp2': ('fsdp2', {'checkpointing': True}),
    'fsdp2, mlp': (
        'fsdp2',
        {'checkpointing': False, 'composition': 'layerwise', 'coefficients': 'mlp'},
    ),
}
"""Name -> kind of wrapper, arguments of `create`."""


def train_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=(folder / 'meet').as_uri(), rank=rank, world_size=2
    )
    for name, (kind, kwargs) in CASES.items():
        (folder / name).mkdir(exist_ok=True)
        train_case(rank, kind, folder / name, kwargs)
    torch.distributed.destroy_process_group()


def train_case(rank: int, kind: str, folder: Path, kwargs: dict[str, Any]) -> None:
    model = create(**kwargs)
    if kind == 'ddp':
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        for block in model.blocks:
            fully_shard(block)
        wrapped = fully_shard(model)
    train(wrapped, images()[2 * rank : 2 * rank + 2])
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if state:  # FSDP gives it to the first process only
        torch.save(state, folder / f'{rank}.pth')
    wrapped.eval()
    with torch.no_grad():
        torch.save(wrapped(images()), folder / f'out_{rank}.pth')


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder for each case, written by two processes: they take long to start."""
    folder = tmp_path_factory.mktemp('two_ranks')
    mp.spawn(train_rank, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize('name', CASES)
def test_two_processes_equal_one(trained, name):
    folder, (_, kwargs) = trained / name, CASES[name]
    model = create(**kwargs)
    train(model, images())
    for file in folder.glob('?.pth'):
        state = torch.load(file)
        torch.testing.assert_close(state, model.state_dict(), atol=1e-5, rtol=1e-4)
    model.eval()
    for rank in range(2):
        out = torch.load(folder / f'out_{rank}.pth')
        torch.testing.assert_close(out, model(images()).detach(), atol=1e-5, rtol=1e-4)
    assert (folder / '0.pth').exists()
