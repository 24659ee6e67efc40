_base_ = [
    '../_base_/models/masa_vit_imagenet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/deit.py',
    '../_base_/default_runtime.py',
]

model = dict(model_name='vit_base_masa_s4')
