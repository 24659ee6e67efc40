# CIFAR-100 as torchvision downloads it: 50,000 images to train on, its 10,000 test images as val.
_base_ = './cifar100.py'

_data = dict(
    _delete_=True, type='TorchvisionDataset', name='CIFAR100', data_root='data', download=True
)
train_dataloader = dict(
    dataset=dict(**_data, split='train', pipeline={{_base_.train_pipeline}}),
)
val_dataloader = dict(dataset=dict(**_data, split='val'))
