# As in the paper: an MLP makes the coefficients from one trainable embedding a layer.
_base_ = './vit_d256_l12_masa_s4_tiny_imagenet.py'

model = dict(model_args=dict(coefficients='mlp'))
