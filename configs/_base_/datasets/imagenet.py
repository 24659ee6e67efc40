# ImageNet-1k at 224x224 with DeiT's augmentation (timm's transforms); data/imagenet/{train,val}.
# The images leave the pipeline normalised by ImageNet's mean and std.
_evaluate = dict(type='TimmTransform', input_size=224, interpolation='bicubic', crop_pct=0.875)
train_pipeline = [
    dict(
        type='TimmTransform',
        input_size=224,
        is_training=True,
        interpolation='bicubic',
        auto_augment='rand-m9-mstd0.5-inc1',
        re_prob=0.25,
        re_mode='pixel',
    )
]

train_dataloader = dict(
    batch_size=128,  # a device
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageNet', data_root='data/imagenet', split='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=[_evaluate]),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
