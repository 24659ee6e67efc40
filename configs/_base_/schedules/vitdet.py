# ViTDet's recipe for ViT-B (arXiv 2203.16527): 100 epochs of 118,287 images / 64 a batch = 1,849
# steps, AdamW at 1e-4, every block's learning rate 0.7 of the next one's, a tenth of it after epochs
# 89 and 96. --auto-scale-lr adapts the rate to your number of devices and batch; --amp is usual.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1),
    paramwise_cfg=dict(layer_decay=0.7),
)
auto_scale_lr = dict(base_batch_size=64, enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=250),  # iterations
    dict(type='MultiStepLR', milestones=[89, 96], gamma=0.1, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
val_cfg = dict()
test_cfg = dict()
