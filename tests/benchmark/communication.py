"""Count the bytes of the collectives of one training step: DDP and FSDP2, two processes on the CPU.

    python tests/benchmark/communication.py vit_base_masa_s4 vit_base_patch16_224

DDP: gradients that are all-reduced. FSDP2, each block sharded and then the model, as its tutorial has
it: parameters that are all-gathered (outputs) and gradients that are reduce-scattered (inputs).
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

import masa_vit  # noqa: F401  (registers the models)

COLLECTIVES = {
    'all_gather_single': 'all-gather',  # torch 2.14
    'all_gather_into_tensor': 'all-gather',
    'reduce_scatter_single': 'reduce-scatter',
    'reduce_scatter_tensor': 'reduce-scatter',
}


def count_bytes(kind: str, model: nn.Module, images: torch.Tensor) -> dict[str, int]:
    """Run one training step, and sum the bytes of its collectives by kind."""
    counts: dict[str, int] = {}

    def add(what: str, tensor: torch.Tensor) -> None:
        counts[what] = counts.get(what, 0) + tensor.nbytes

    if kind == 'ddp':
        model = nn.parallel.DistributedDataParallel(model)

        def hook(_, bucket):  # DDP refuses annotations that are strings
            add('all-reduce', bucket.buffer())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        model.register_comm_hook(None, hook)
    else:
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        for name, what in COLLECTIVES.items():
            if hasattr(dist, name):
                setattr(dist, name, counting(getattr(dist, name), what, add))
    model(images).sum().backward()
    return counts


def counting(collective: Any, what: str, add: Any) -> Any:
    """A collective that adds the size of what it sends."""

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        add(what, max(tensors, key=lambda tensor: tensor.nbytes))
        return collective(*args, **kwargs)

    return call


def run_rank(rank: int, kind: str, name: str, img_size: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    model = timm.create_model(name, img_size=img_size)
    counts = count_bytes(kind, model, torch.randn(1, 3, img_size, img_size))
    if rank == 0:
        queue.put(counts)
    dist.barrier()
    dist.destroy_process_group()


def measure(kind: str, name: str, img_size: int = 32) -> dict[str, int]:
    """Bytes of one step of a model, by collective; the size of the images does not matter."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
    queue = mp.get_context('spawn').SimpleQueue()
    mp.spawn(run_rank, (kind, name, img_size, port, queue), nprocs=2)
    return queue.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+')
    for name in parser.parse_args().models:
        for kind in ('ddp', 'fsdp2'):
            for what, count in measure(kind, name).items():
                print(f'{name:24} {kind:6} {what:24} {count / 2**20:8.1f} MiB')


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main())
