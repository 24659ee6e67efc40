# Boxes in Pascal VOC's format, a small data set and a CPU: Faster R-CNN on ViT-Ti.
# docs/tutorial_detection.md goes with it. For your own data copy this file and change the first lines.
#
#   data_root/ImageSets/Main/{train,val}.txt    a name in each line
#   data_root/Annotations/NAME.xml, data_root/JPEGImages/NAME.jpg
# names in the files; (..., ) with a comma if there is one alone
classes = ('RBC', 'WBC', 'Platelets')
data_root = 'data/bccd/'
_size = 256  # longer side of the images in pixels, a multiple of 32

_base_ = [
    'masa_vit::_base_/models/faster_rcnn_vit_mini.py',
    'masa_vit::_base_/schedules/det_mini.py',
    'masa_vit::_base_/det_runtime.py',
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=_size),
    backbone=dict(model_args=dict(img_size=_size)),
    # anchors of 16 to 256 pixels, half of mmdet's: platelets have 15 (masa-vit data)
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_head=dict(num_classes=len(classes))),
)

_resize = dict(type='Resize', scale=(_size, _size), keep_ratio=True)
_dataset = dict(type='CheckedXMLDataset', data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        **_dataset,
        ann_file='ImageSets/Main/train.txt',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            _resize,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_dataset,
        ann_file='ImageSets/Main/val.txt',
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            _resize,
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ClasswiseVOCMetric', metric='mAP', eval_mode='area')  # AP50, by class
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=12, val_interval=6)
default_hooks = dict(logger=dict(interval=10))
