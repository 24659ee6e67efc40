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
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import masa_vit  # noqa: F401  (registers the models, also in spawned processes)

MODEL = {
    'model_name': 'vit_tiny_masa_s2',
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 32,
    'depth': 3,
    'num_heads': 2,
    'num_classes': 10,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    'ddp': ('ddp', {}),
    'ddp-checkpointing-mlp': ('ddp', {'checkpointing': True, 'coefficients': 'mlp'}),
    'fsdp1': ('fsdp1', {}),
    'fsdp1-mlp': ('fsdp1', {'coefficients': 'mlp'}),
    'fsdp2-checkpointing': ('fsdp2', {'checkpointing': True}),
    'fsdp2-mlp': ('fsdp2', {'coefficients': 'mlp'}),
}


def create(checkpointing: bool = False, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(**MODEL, **kwargs)
    model.set_grad_checkpointing(checkpointing)
    return model


def wrap(model: Any, kind: str) -> nn.Module:
    if kind == 'ddp':
        return DistributedDataParallel(model)
    if kind == 'fsdp1':
        policy = ModuleWrapPolicy({type(model.blocks[0])})
        device = torch.device('cpu')
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=device)
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def train(model: nn.Module, data: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def train_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=2
    )
    for name, (kind, kwargs) in CASES.items():
        out = folder / name
        out.mkdir(exist_ok=True)
        model = create(**kwargs)
        wrapped = wrap(model, kind)
        train(wrapped, images()[2 * rank : 2 * rank + 2])
        whole = wrapped if kind == 'fsdp1' else model
        state = get_model_state_dict(whole, options=StateDictOptions(full_state_dict=True))
        if state:  # FSDP gives it to the first process only
            torch.save(state, out / f'{rank}.pth')
        wrapped.eval()
        with torch.no_grad():
            torch.save(wrapped(images()), out / f'out_{rank}.pth')
    for coefficients in ('direct', 'mlp'):
        train_head(rank, folder, coefficients)
    torch.distributed.destroy_process_group()


def train_head(rank: int, folder: Path, coefficients: str) -> None:
    """Freeze all but the classifier, train, and write the features before and after."""
    model = create(coefficients=coefficients)
    for part in (model.patch_embed, model.blocks, model.norm):
        part.requires_grad_(False)
    model.cls_token.requires_grad = model.pos_embed.requires_grad = False
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    features = [model.forward_features(images()).detach()]
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(images()[2 * rank : 2 * rank + 2]).square().mean().backward()
        optimizer.step()
    features.append(model.forward_features(images()).detach())
    torch.save(features, folder / f'features_{coefficients}_{rank}.pth')


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


@pytest.mark.parametrize('coefficients', ['direct', 'mlp'])
def test_features_of_a_frozen_trunk_stay_under_ddp(trained, coefficients):
    for rank in range(2):
        before, after = torch.load(trained / f'features_{coefficients}_{rank}.pth')
        assert torch.equal(before, after)
