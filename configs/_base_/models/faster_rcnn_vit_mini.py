# Faster R-CNN that a CPU can train: ViT-Ti without windows (256 tokens at 256 pixels), half the channels
# in neck and heads, plain box head, a quarter of the RoIs.
_base_ = './faster_rcnn_vit.py'

model = dict(
    backbone=dict(model_name='vit_tiny_masa_s4', window_size=0, drop_path_rate=0.0),
    neck=dict(in_channels=192, out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128, num_convs=1),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(
            _delete_=True,
            type='Shared2FCBBoxHead',
            in_channels=128,
            fc_out_channels=512,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=250),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=250)),
)
