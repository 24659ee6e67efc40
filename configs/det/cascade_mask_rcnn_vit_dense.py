_base_ = './cascade_mask_rcnn_vit_masa.py'

model = dict(backbone=dict(model_name='vit_base_patch16_224'))
