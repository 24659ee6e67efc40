# The dense baseline of vit_tiny_masa_s4_digits.py: the same but for the model's name.
_base_ = './vit_tiny_masa_s4_digits.py'

model = dict(model_name='vit_tiny_patch16_224')
