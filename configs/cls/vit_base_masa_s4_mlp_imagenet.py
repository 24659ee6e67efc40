# As in the paper: an MLP makes the coefficients from one trainable embedding a layer.
_base_ = './vit_base_masa_s4_imagenet.py'

model = dict(model_args=dict(coefficients='mlp'))
