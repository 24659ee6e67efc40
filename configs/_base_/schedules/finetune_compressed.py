# To recover what compression lost: AdamW at 5e-4, half of what training from scratch uses, linear
# warm-up over 100 steps, times a cosine that reaches zero where training ends: train_cfg.max_epochs is
# all that a longer run changes.
# 45,000 images / 128 a batch = 352 steps an epoch; 10 epochs = 3,520 steps.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=128, enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),  # iterations
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
val_cfg = dict()
