# The dense baseline: the same but for the model's name.
_base_ = './vit_d256_l12_masa_s4_cifar10.py'

model = dict(model_name='vit_tiny_patch16_224')
