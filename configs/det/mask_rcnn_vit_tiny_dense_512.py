_base_ = './mask_rcnn_vit_tiny_masa_512.py'

model = dict(backbone=dict(model_name='vit_tiny_patch16_224'))
