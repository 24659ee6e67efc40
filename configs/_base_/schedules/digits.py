# AdamW at 2e-3, linear warm-up over 115 steps (5 epochs), times a cosine that reaches zero where
# training ends: train_cfg.max_epochs is all that a longer run changes.
# 1,437 images / 64 a batch = 23 steps an epoch; 40 epochs = 920 steps.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=64, enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=115),  # iterations
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=2)
val_cfg = dict()
