# Mask R-CNN on ViT-Ti at 512 pixels, COCO, for one GPU: 36 epochs of 7,393 steps.
_base_ = [
    '../_base_/models/mask_rcnn_vit_tiny.py',
    '../_base_/datasets/coco_512.py',
    '../_base_/schedules/vitdet.py',
    '../_base_/det_runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=None),  # for training from scratch
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=1000),  # iterations
    dict(type='MultiStepLR', milestones=[30, 34], gamma=0.1, by_epoch=True),
]
train_cfg = dict(max_epochs=36)
