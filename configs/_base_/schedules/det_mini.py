# For small data, from scratch: AdamW at 5e-4, linear warm-up over 100 steps, times a cosine that
# reaches zero where training ends: train_cfg.max_epochs is all that a longer run changes.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=4, enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),  # iterations
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=3)
val_cfg = dict()
test_cfg = dict()
