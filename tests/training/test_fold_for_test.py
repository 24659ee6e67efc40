"""Testing and prediction run the folded model, whose outputs are the same."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

import masa_vit
from masa_vit.layers import SharedLinear
from masa_vit.training.hooks import FoldHook
from masa_vit.training.hooks.parameter_table import partly_frozen
from masa_vit.training.wrapped_models import fold_for_inference


def shares(model: nn.Module) -> bool:
    return any(isinstance(module, SharedLinear) for module in model.modules())


def test_the_model_is_folded_for_the_test_epoch_only(small, images):
    model = small().eval()
    runner = SimpleNamespace(model=model)
    hook = FoldHook()
    hook.before_test_epoch(runner)
    assert not shares(runner.model)
    assert not runner.model.training
    assert torch.equal(runner.model(images), model(images))
    hook.after_test_epoch(runner)
    assert runner.model is model


def test_a_dense_model_is_left_alone(small):
    model = small('vit_tiny_patch16_224')
    runner = SimpleNamespace(model=model)
    hook = FoldHook()
    hook.before_test_epoch(runner)
    assert runner.model is model
    hook.after_test_epoch(runner)
    assert runner.model is model


def test_frozen_blocks_whose_weights_move(small):
    model = small()
    assert partly_frozen(model) == []
    for index in (0, 2):
        model.blocks[index].requires_grad_(False)
    assert partly_frozen(nn.Sequential(model)) == [0, 2]
    for block in model.blocks:
        block.requires_grad_(False)
    assert partly_frozen(model) == [0, 1, 2, 3]
    for module in model.blocks.shared.values():
        module.requires_grad_(False)
    assert partly_frozen(model) == []


def test_subclasses_are_not_folded(small):
    class Custom(masa_vit.MasaVisionTransformer):
        pass

    model = small()
    model.__class__ = Custom
    assert fold_for_inference(model) is model
