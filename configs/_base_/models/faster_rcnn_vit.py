# Faster R-CNN on a plain vision transformer: mask_rcnn_vit.py without masks.
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

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
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=256,
            norm_cfg=dict(type='LayerNorm2d'),
        )
    ),
)
