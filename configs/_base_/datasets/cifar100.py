# CIFAR-100: as CIFAR-10, with 100 classes: data/cifar100/{train,val}/CLASS/*.
# cifar100_torchvision.py lets torchvision download it instead.
_base_ = './cifar10.py'

data_preprocessor = dict(mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4])
_hint = (
    'A config that downloads CIFAR-100 instead: '
    'masa_vit::cls/vit_d64_l12_masa_s4_cifar100_torchvision.py (--dense: its dense baseline)'
)
train_dataloader = dict(dataset=dict(data_root='data/cifar100', hint=_hint))
val_dataloader = dict(dataset=dict(data_root='data/cifar100', hint=_hint))
