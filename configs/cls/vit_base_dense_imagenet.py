# The dense baseline: the same but for the model's name.
_base_ = './vit_base_masa_s4_imagenet.py'

model = dict(model_name='vit_base_patch16_224')
