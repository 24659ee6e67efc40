# DeiT's recipe (arXiv 2012.12877), without repeated augmentation and without distillation.
# 1,281,167 images / (8 devices x 128 a batch = 1,024) = 1,251 steps an epoch, 375,300 in all.
# DeiT's learning rate is 5e-4 a batch of 512: 1e-3 for 1,024; --auto-scale-lr adapts it.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
)
auto_scale_lr = dict(base_batch_size=1024, enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', begin=5, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
val_cfg = dict()
