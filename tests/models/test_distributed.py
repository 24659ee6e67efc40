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


def train_rank(rank: int, kind: str, port: int, folder: Path, kwargs: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
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
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ('kind', 'kwargs'),
    [
        ('ddp', {'checkpointing': True, 'coefficients': 'mlp'}),
        ('ddp', {'checkpointing': False}),
        ('fsdp2', {'checkpointing': True}),
        ('fsdp2', {'checkpointing': False, 'composition': 'layerwise', 'coefficients': 'mlp'}),
    ],
)
def test_two_processes_equal_one(kind, kwargs, free_port, tmp_path):
    mp.spawn(train_rank, (kind, free_port, tmp_path, kwargs), nprocs=2)
    model = create(**kwargs)
    train(model, images())
    for file in tmp_path.glob('?.pth'):
        state = torch.load(file)
        torch.testing.assert_close(state, model.state_dict(), atol=1e-5, rtol=1e-4)
    model.eval()
    for rank in range(2):
        out = torch.load(tmp_path / f'out_{rank}.pth')
        torch.testing.assert_close(out, model(images()).detach(), atol=1e-5, rtol=1e-4)
    assert (tmp_path / '0.pth').exists()
