# vit_d64_l12_masa_s4_cifar10.py for those without data/cifar10: torchvision downloads its copy.
# 50,000 images to train on / 128 a batch = 391 steps an epoch; 15 epochs = 5,865 steps.
# The 10,000 images of val are CIFAR's test set: choose nothing by them.
_base_ = [
    '../_base_/models/masa_vit_d64_l12.py',
    '../_base_/datasets/cifar10_torchvision.py',
    '../_base_/schedules/cifar.py',
    '../_base_/default_runtime.py',
]

# 32x32 pixels in 4x4 patches: 64 tokens
model = dict(model_args=dict(img_size=32, patch_size=4), num_classes=10)
