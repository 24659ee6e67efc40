# Mask R-CNN on a plain vision transformer, as in ViTDet (arXiv 2203.16527): mmdet's own Mask R-CNN
# with another backbone and neck, layer norms, two convolutions in the RPN and four in the box head.
# ViTDet adds relative position biases to the attention; here it is timm's, without.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

_norm = dict(type='LayerNorm2d')
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
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=_norm),
        mask_head=dict(norm_cfg=_norm),
    ),
)
