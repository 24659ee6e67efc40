_base_ = [
    '../_base_/models/masa_vit_d256_l12.py',
    '../_base_/datasets/tiny_imagenet.py',
    '../_base_/schedules/cifar.py',
    '../_base_/default_runtime.py',
]

# 64x64 pixels in 8x8 patches: 64 tokens
model = dict(model_args=dict(img_size=64, patch_size=8), num_classes=200)
