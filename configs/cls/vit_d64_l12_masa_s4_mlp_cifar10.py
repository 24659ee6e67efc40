# As in the paper: an MLP makes the coefficients from one trainable embedding a layer.
_base_ = './vit_d64_l12_masa_s4_cifar10.py'

model = dict(model_args=dict(coefficients='mlp'))
