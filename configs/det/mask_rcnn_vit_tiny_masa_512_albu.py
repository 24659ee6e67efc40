# mask_rcnn_vit_tiny_masa_512.py with colours, blur and compression changed by albumentations.
_base_ = './mask_rcnn_vit_tiny_masa_512.py'

_albu = dict(
    type='Albu',
    transforms=[
        dict(
            type='OneOf',
            transforms=[
                dict(type='ColorJitter', p=1.0),
                dict(type='RandomBrightnessContrast', p=1.0),
                dict(type='HueSaturationValue', p=1.0),
            ],
            p=0.5,
        ),
        dict(
            type='OneOf',
            transforms=[dict(type='Blur', blur_limit=3), dict(type='MedianBlur', blur_limit=3)],
            p=0.1,
        ),
        dict(type='ImageCompression', quality_range=(75, 95), p=0.2),
    ],
    bbox_params=dict(
        type='BboxParams',
        format='pascal_voc',
        label_fields=['gt_bboxes_labels', 'gt_ignore_flags'],
        min_visibility=0.0,
        filter_lost_elements=True,
    ),
    keymap=dict(img='image', gt_masks='masks', gt_bboxes='bboxes'),
    skip_img_without_anno=True,
)
_pipeline = _base_._train_pipeline
train_dataloader = dict(dataset=dict(pipeline=[*_pipeline[:-1], _albu, _pipeline[-1]]))
