"""Run by test_train.py under torchrun: CONFIG WORK_DIR WITH_CP; saves each rank's weights there."""

import os
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from masa_vit.training import train


@HOOKS.register_module()
class KeepWeights(Hook):
    """Saves the model of each rank after training, as DDP left it."""

    def after_train(self, runner):
        path = Path(runner.work_dir) / f'rank_{os.environ["RANK"]}.pth'
        torch.save(runner.model.module.state_dict(), path)


if __name__ == '__main__':
    config, work_dir, with_cp = sys.argv[1:]
    options = {
        'model.backbone.with_cp': with_cp == 'True',
        'custom_hooks': [dict(type='SummaryHook'), dict(type='KeepWeights')],
    }
    train(config, work_dir, launcher='pytorch', cfg_options=options)
