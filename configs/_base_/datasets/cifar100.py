# CIFAR-100: 32x32 pixels, 100 classes, as a folder of images: data/cifar100/{train,val}/CLASS/*.
# cifar100_torchvision.py lets torchvision download it instead.
data_preprocessor = dict(
    type='ImagePreprocessor',
    mean=[129.3, 124.1, 112.4],
    std=[68.2, 65.4, 70.4],
)
_hint = (
    'A config that downloads CIFAR-100 instead: '
    'masa_vit::cls/vit_d64_l12_masa_s4_cifar100_torchvision.py, its dense twin: '
    'masa_vit::cls/vit_d64_l12_dense_cifar100_torchvision.py'
)
train_pipeline = [
    dict(
        type='Albumentations',
        transforms=[
            dict(type='PadIfNeeded', min_height=40, min_width=40),  # shifts of up to 4 pixels
            dict(type='RandomCrop', height=32, width=32),
            dict(type='HorizontalFlip', p=0.5),
        ],
    )
]

train_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolder',
        data_root='data/cifar100',
        split='train',
        cache=True,
        hint=_hint,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolder', data_root='data/cifar100', split='val', cache=True, hint=_hint
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
