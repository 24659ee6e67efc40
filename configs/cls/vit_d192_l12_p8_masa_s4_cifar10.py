_base_ = [
    '../_base_/models/masa_vit_d192_l12_p8.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar.py',
    '../_base_/default_runtime.py',
]

model = dict(model_args=dict(img_size=32), num_classes=10)
train_cfg = dict(max_epochs=20)
