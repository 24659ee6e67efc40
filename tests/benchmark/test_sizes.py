"""Sizes against what they stand for: files, a DDP process, formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from masa_vit.benchmark.sizes import UNITS, count_flops, count_sizes
from masa_vit.benchmark.steps import save_weights
from masa_vit.benchmark.subjects import timm_subject


@pytest.mark.parametrize('kind', ['direct', 'mlp'])
def test_sizes_of_a_model(spec, tmp_path, kind):
    subject = timm_subject(spec(coefficients=kind))
    parameters = list(subject.model.parameters())
    parameters[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in parameters]
    sizes = count_sizes(subject)
    assert set(sizes) == set(UNITS)
    trainable = parameters[1:]
    count = sum(parameter.numel() for parameter in trainable)
    assert sizes['trainable parameters'] == count
    assert sizes['parameters'] == count + parameters[0].numel()
    # two moments of each parameter, and a step counter of four bytes
    assert sizes['optimizer state'] == 8 * count + 4 * len(trainable)
    assert sizes['gradients all-reduced'] == 4 * count
    save_weights(subject.model, tmp_path / 'x.safetensors')
    assert sizes['checkpoint'] == (tmp_path / 'x.safetensors').stat().st_size
    assert not any(key.startswith('generator') for key in load_file(tmp_path / 'x.safetensors'))
    for parameter, value in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None


def test_ranks_send_the_gradients(spec, tmp_path):
    """The bytes that DistributedDataParallel hands to its communication hook."""
    subject = timm_subject(spec())
    expected = count_sizes(subject)['gradients all-reduced']
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        sent: list[int] = []

        def hook(state, bucket):
            sent.append(bucket.buffer().nbytes)
            return allreduce_hook(state, bucket)

        model = DistributedDataParallel(subject.model.train())
        model.register_comm_hook(None, hook)
        subject.loss(model).backward()
    finally:
        dist.destroy_process_group()
    assert sum(sent) == expected


def test_flops_of_a_dense_model_follow_its_shape(spec):
    batch, tokens, dim, depth, classes = 2, 17, 32, 2, 5
    flops = count_flops(timm_subject(spec(dense=True, device='meta')))
    linear = 2 * batch * tokens * dim * (3 + 1 + 4 + 4) * dim
    attention = 2 * 2 * batch * tokens * tokens * dim
    embed = 2 * batch * 16 * dim * 3 * 8 * 8
    head = 2 * batch * dim * classes
    assert flops['FLOPs of evaluation'] == depth * (linear + attention) + embed + head
    # backward is twice that, but for the gradient of the images, which is not computed
    assert flops['FLOPs of training'] == 3 * depth * (linear + attention) + 2 * embed + 3 * head


def test_flops_of_dense_baselines_are_equal(spec):
    other = spec(dense=True, device='meta')
    plain = replace(other, name='vit_tiny_patch16_224', dense=False)
    assert count_flops(timm_subject(other)) == count_flops(timm_subject(plain))


def test_composition_and_recomputation_cost_flops(spec):
    dense, ours, again = (
        count_flops(timm_subject(spec(device='meta', **options)))['FLOPs of training']
        for options in (dict(dense=True), dict(), dict(checkpointing=True))
    )
    # W_l of all layers, and the gradients of atoms and coefficients: 3 products of 2 S L d^2 each
    assert ours - dense == 3 * 2 * 2 * 2 * 4 * 32**2
    assert again > ours * 1.15
