# The dense baseline: the same but for the model's name.
_base_ = './vit_tiny_masa_s4_imagenet.py'

model = dict(model_name='vit_tiny_patch16_224')
