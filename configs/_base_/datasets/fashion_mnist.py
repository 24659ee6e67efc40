# Fashion-MNIST: 28x28 grey pixels, padded to 32x32, 10 classes; torchvision downloads it (30 MB).
# A copy as a folder of images is read by dict(type='ImageFolder', data_root=..., split=...).
data_preprocessor = dict(type='ImagePreprocessor', mean=[72.9] * 3, std=[90.0] * 3)

_pad = dict(type='PadIfNeeded', min_height=32, min_width=32)
train_pipeline = [
    dict(
        type='Albumentations',
        transforms=[
            dict(type='PadIfNeeded', min_height=36, min_width=36),  # shifts of 2 pixels and more
            dict(type='RandomCrop', height=32, width=32),
            dict(type='HorizontalFlip', p=0.5),
        ],
    )
]
_data = dict(type='TorchvisionDataset', name='FashionMNIST', data_root='data', download=True)

train_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(**_data, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(**_data, split='val', pipeline=[dict(type='Albumentations', transforms=[_pad])]),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
