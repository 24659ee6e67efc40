# AdamW at 5e-4 in the head; every layer's learning rate is 0.75 of the next one's. Linear warm-up
# over 200 steps, times a cosine that reaches zero where training ends.
# base_batch_size belongs to lr; --auto-scale-lr adapts lr to your number of devices and batch.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=32, enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=200),  # iterations
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
val_cfg = dict()
