_base_ = [
    '../_base_/models/cascade_mask_rcnn_vit.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/vitdet.py',
    '../_base_/det_runtime.py',
]
