# scikit-learn's digits: 1,437 images to train on, 360 held out, 8x8 pixels; nothing to download.
data_preprocessor = dict(type='ImagePreprocessor', mean=[77.9] * 3, std=[95.9] * 3)

# Shown at 16x16. A digit must not be flipped; it may be shifted, turned and stretched a little.
_resize = dict(type='Resize', height=16, width=16, interpolation=1)
_affine = dict(type='Affine', rotate=(-12, 12), scale=(0.85, 1.15), translate_px=(-2, 2), p=0.9)

train_dataloader = dict(
    batch_size=64,  # 23 steps an epoch
    num_workers=0,  # so small that workers would cost more than they give
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='Digits',
        split='train',
        pipeline=[dict(type='Albumentations', transforms=[_resize, _affine])],
    ),
)
val_dataloader = dict(
    batch_size=180,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='Digits',
        split='val',
        pipeline=[dict(type='Albumentations', transforms=[_resize])],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
