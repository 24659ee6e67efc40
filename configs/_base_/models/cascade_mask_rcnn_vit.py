# Cascade Mask R-CNN on a plain vision transformer, as in ViTDet (arXiv 2203.16527): mmdet's own with
# another backbone and neck, layer norms, and the three box heads with four convolutions each. The
# losses of the boxes are mmdet's (smooth L1, where ViTDet has L1).
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

_norm = dict(type='LayerNorm2d')
_box_head = dict(
    type='Shared4Conv1FCBBoxHead',
    in_channels=256,
    conv_out_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=80,
    norm_cfg=_norm,
    reg_class_agnostic=True,
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
)
model = dict(
    # mean and std are ImageNet's, as in configs/cls; some of timm's ViTs want 127.5 for both.
    # All images are padded to one square, as in ViTDet: a batch does not change its images' results
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='MasaViT',
        model_name='vit_base_masa_s4',
        window_size=14,
        drop_path_rate=0.1,
    ),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=768, out_channels=256),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=[
            dict(
                **_box_head,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=target_stds,
                ),
            )
            for target_stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
        mask_head=dict(norm_cfg=_norm),
    ),
)
