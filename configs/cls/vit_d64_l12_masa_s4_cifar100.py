_base_ = [
    '../_base_/models/masa_vit_d64_l12.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar.py',
    '../_base_/default_runtime.py',
]

# 32x32 pixels in 4x4 patches: 64 tokens
model = dict(model_args=dict(img_size=32, patch_size=4), num_classes=100)
