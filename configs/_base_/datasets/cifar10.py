# CIFAR-10: 32x32 pixels, 10 classes, as a folder of images: data/cifar10/{train,val}/CLASS/*.png.
# cifar10_torchvision.py lets torchvision download it instead.
data_preprocessor = dict(
    type='ImagePreprocessor',
    mean=[125.3, 123.0, 113.9],
    std=[63.0, 62.1, 66.7],
)
_hint = (
    'A config that downloads CIFAR-10 instead: '
    'masa_vit::cls/vit_d64_l12_masa_s4_cifar10_torchvision.py (--dense: its dense baseline)'
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
        data_root='data/cifar10',
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
    dataset=dict(type='ImageFolder', data_root='data/cifar10', split='val', cache=True, hint=_hint),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
