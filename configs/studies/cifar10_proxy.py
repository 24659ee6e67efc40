# The recipe of docs/evidence.md: a small model and a part of CIFAR-10, so that many seeds are cheap.
# 15,000 images / 128 a batch = 117 steps an epoch; 15 epochs = 1,755 steps.
_base_ = ['../cls/vit_d64_l12_masa_s4_cifar10.py']

model = dict(model_args=dict(patch_size=8))  # 16 tokens
train_dataloader = dict(
    # one process: two runs on two cores need no loader workers
    num_workers=0,
    persistent_workers=False,
    dataset=dict(images_per_class=1500),
)
val_dataloader = dict(num_workers=0, persistent_workers=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=234),  # 2 epochs
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(val_interval=5)
custom_hooks = [
    *_base_.custom_hooks,
    # the mean of the weights after every step of the last three epochs is evaluated
    dict(type='EMAHook', ema_type='StochasticWeightAverage', begin_epoch=12),
]
