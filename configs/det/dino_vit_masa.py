# DINO on ViT-B with S=4 atoms for each projection: COCO, boxes only, 12 epochs, mmdet's rates for
# DINO and ViTDet's decay by layer. Not run.
_base_ = [
    '../_base_/models/dino_vit.py',
    '../_base_/datasets/coco_boxes.py',
    '../_base_/schedules/vitdet.py',
    '../_base_/det_runtime.py',
]

optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), clip_grad=dict(max_norm=0.1, norm_type=2))
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [dict(type='MultiStepLR', milestones=[11], gamma=0.1, by_epoch=True)]
train_cfg = dict(max_epochs=12, val_interval=1)
