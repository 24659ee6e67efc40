# RetinaNet on ViT-B with S=4 atoms for each projection: COCO, boxes only, ViTDet's schedule. Not run.
_base_ = [
    '../_base_/models/retinanet_vit.py',
    '../_base_/datasets/coco_boxes.py',
    '../_base_/schedules/vitdet.py',
    '../_base_/det_runtime.py',
]
