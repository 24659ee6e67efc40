# Mask R-CNN on ViT-B with S=4 atoms per projection, COCO, ViTDet's recipe: batch 64 = 32 GPUs x 2.
#
#   torchrun --nproc-per-node 8 tools/train.py configs/det/mask_rcnn_vit_masa.py \
#       --launcher pytorch --amp --auto-scale-lr
#
# From scratch, for there are no pretrained MASA weights yet. From a checkpoint of your own:
#   --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    '../_base_/models/mask_rcnn_vit.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/vitdet.py',
    '../_base_/det_runtime.py',
]
