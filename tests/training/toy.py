"""A regression on made-up vectors: a task that the engine knows nothing about."""

import os
import random
import resource
import signal
import time
from typing import ClassVar

import numpy as np
import timm
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """Two layers with dropout; the noise in `loss` stands for mixup."""

    def __init__(self, width=8, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.body = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 1))

    def forward(self, inputs, targets=None, mode='tensor'):
        out = self.body(inputs)
        if mode == 'loss':
            noise = torch.rand(1) + np.random.rand() + random.random()
            return {'loss': nn.functional.mse_loss(out, targets * (1 + 0.1 * noise))}
        return list(zip(out.tolist(), targets.tolist(), strict=True)) if mode == 'predict' else out


@MODELS.register_module(force=True)
class ToyViT(ToyModel):
    """The same task by a timm vision transformer, the vector drawn as a picture."""

    def __init__(self, model_name, depth=2, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        vit = timm.create_model(
            model_name,
            **dict(img_size=8, patch_size=4, embed_dim=16, depth=depth, num_heads=2),
            **dict(in_chans=1, num_classes=8),
        )
        picture = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Upsample((8, 8)))
        self.body = nn.Sequential(picture, vit, nn.Linear(8, 1))


@DATASETS.register_module(force=True)
class ToyData(Dataset):
    """Vectors with a random augmentation from all three generators."""

    metainfo: ClassVar = {'classes': ['a', 'b']}

    def __init__(self, size=20, noise=0.1, delay=0.0, nan=None):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 4, generator=generator)
        self.paths = [f'{i}.png' for i in range(size)]
        if nan is not None:
            self.x[nan] = torch.nan
        self.noise, self.delay = noise, delay

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        time.sleep(self.delay)
        noise = self.noise * (np.random.rand() + random.random() + torch.rand(4))
        return {'inputs': self.x[i] + noise.float(), 'targets': self.x[i].sum(0, keepdim=True)}


@METRICS.register_module(force=True)
class ToyError(BaseMetric):
    """Mean squared error."""

    def process(self, data_batch, data_samples):
        self.results += [(a[0] - b[0]) ** 2 for a, b in data_samples]

    def compute_metrics(self, results):
        return {'error': float(np.mean(results))}


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Kills the process, as power cuts do: at a training iteration, before a validation or
    while an epoch's checkpoint is written. Or asks it to stop, with SIGTERM; or lets the system refuse
    to write an epoch's checkpoint (`full`), as a full disk does.

    With `dump` it writes, at the end, what this rank has seen and learnt.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        iteration=None,
        validation=None,
        writing=None,
        full=None,
        sig='SIGKILL',
        again=False,
        rank=0,
        dump=False,
    ):
        self.iteration, self.validation, self.writing = iteration, validation, writing
        self.full = full
        self.signal, self.again, self.rank, self.dump = signal.Signals[sig], again, rank, dump
        self.seen = []

    def after_run(self, runner):
        if self.dump:
            model = getattr(runner.model, 'module', runner.model)
            out = {'parameters': model.state_dict(), 'seen': self.seen}
            torch.save(out, f'{runner.work_dir}/rank{get_rank()}.pth')

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen += data_batch['targets'].flatten().tolist()
        if (
            get_rank() == self.rank
            and runner.iter == self.iteration
            and (self.again or not runner._resume)
        ):
            os.kill(os.getpid(), self.signal)

    def before_save_checkpoint(self, runner, checkpoint):
        if self.writing == checkpoint['meta']['epoch']:
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        if self.full == checkpoint['meta']['epoch']:
            resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, resource.RLIM_INFINITY))

    def before_val_epoch(self, runner):
        if runner.epoch == self.validation and not runner._resume:
            os.kill(os.getpid(), self.signal)
