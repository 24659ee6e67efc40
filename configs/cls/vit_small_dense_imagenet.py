# The dense baseline: the same but for the model's name.
_base_ = './vit_small_masa_s4_imagenet.py'

model = dict(model_name='vit_small_patch16_224')
