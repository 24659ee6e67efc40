# Mask R-CNN on ViT-Ti at 320 pixels for a few hundred images and a CPU: it shows that a detector
# trains, and is too small to be a good one.
_base_ = [
    '../_base_/models/mask_rcnn_vit_mini.py',
    '../_base_/datasets/coco_mini.py',
    '../_base_/schedules/det_mini.py',
    '../_base_/det_runtime.py',
]

default_hooks = dict(logger=dict(interval=10))
