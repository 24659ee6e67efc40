# coco.py at 320 pixels with flips alone, 4 images a batch: for a few hundred images and a CPU.
_base_ = './coco.py'

_resize = dict(type='Resize', scale=(320, 320), keep_ratio=True)
_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    _resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
_test_pipeline = [
    dict(type='LoadImageFromFile'),
    _resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(filter_cfg=dict(min_size=0), pipeline=_train_pipeline)
)
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=_test_pipeline))
test_dataloader = val_dataloader
