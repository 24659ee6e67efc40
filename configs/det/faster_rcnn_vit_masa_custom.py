# Your own classes, boxes only. Inherit from this file, or copy it and change the two lines below;
# docs/detection_data.md has the way from a folder of images to a trained detector.
#
#   data_root/annotations/{train,val}.json    COCO's format
#   data_root/{train,val}/                    the images that the files name
classes = ('cat', 'dog')  # names in the files; (..., ) with a comma if there is one alone
data_root = 'data/custom/'

_base_ = [
    'masa_vit::_base_/models/faster_rcnn_vit.py',
    'masa_vit::_base_/datasets/coco.py',
    'masa_vit::_base_/schedules/det_mini.py',
    'masa_vit::_base_/det_runtime.py',
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=512),
    backbone=dict(
        # a dense ViT has pretrained weights to start from: model_name='vit_small_patch16_224',
        # init_cfg=dict(type='Pretrained', checkpoint='vit_small_patch16_224'), its mean and std,
        # data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3), and smaller steps,
        # optim_wrapper=dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay=0.7))
        model_name='vit_small_masa_s4',
        model_args=dict(img_size=512),
        window_size=8,
    ),
    neck=dict(in_channels=384),
    roi_head=dict(bbox_head=dict(num_classes=len(classes))),
)

_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(512, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
_dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        **_dataset,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(min_size=0),
        pipeline=_train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        **_dataset,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        pipeline=_test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=50, val_interval=5)
