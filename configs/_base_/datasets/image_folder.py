# Your own images: data_root/{train,val}/CLASS/**/*.jpg; --cfg-options sets data_root:
# train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
train_pipeline = [
    dict(
        type='Albumentations',
        transforms=[
            dict(type='RandomResizedCrop', size=(224, 224), scale=(0.3, 1.0), interpolation=2),
            dict(type='HorizontalFlip', p=0.5),
            dict(type='ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, p=0.5),
        ],
    )
]
val_pipeline = [
    dict(
        type='Albumentations',
        transforms=[
            dict(type='SmallestMaxSize', max_size=256, interpolation=2),  # 2: bicubic
            dict(type='CenterCrop', height=224, width=224),
        ],
    )
]

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolder',
        data_root='data/my_images',
        split='train',
        on_error='raise',  # 'skip' leaves unreadable images out and tells how many
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolder',
        data_root='data/my_images',
        split='val',
        on_error='raise',
        pipeline=val_pipeline,
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
