# The demo: a small MASA ViT on real handwritten digits, minutes on a laptop.
_base_ = [
    '../_base_/models/masa_vit_d64_l12.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    '../_base_/default_runtime.py',
]

# 16x16 pixels in 4x4 patches: 16 tokens
model = dict(model_args=dict(img_size=16, patch_size=4), num_classes=10, label_smoothing=0.1)
