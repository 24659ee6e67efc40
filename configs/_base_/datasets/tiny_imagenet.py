# TinyImageNet: 64x64 pixels, 200 classes, 500 images each to train on, 50 to validate with.
# Its val folder has to be sorted into class folders first: docs/data.md has the commands.
data_preprocessor = dict(
    type='ImagePreprocessor',
    mean=[122.5, 114.3, 101.4],
    std=[70.5, 68.6, 71.8],
)
train_pipeline = [
    dict(
        type='Albumentations',
        transforms=[
            dict(type='PadIfNeeded', min_height=80, min_width=80),  # shifts of up to 8 pixels
            dict(type='RandomCrop', height=64, width=64),
            dict(type='HorizontalFlip', p=0.5),
        ],
    )
]

train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolder', data_root='data/tiny_imagenet', split='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageFolder', data_root='data/tiny_imagenet', split='val'),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
