# Mask R-CNN that a CPU can train: ViT-Ti at 320 pixels (a map of 20 x 20 tokens, 4 windows), half
# the channels in neck and heads, plain box head, a quarter of the RoIs.
_base_ = './mask_rcnn_vit_tiny.py'

model = dict(
    # a third less to compute than squares, at the price of results that depend on the batch
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(model_args=dict(img_size=320), window_size=10),
    neck=dict(out_channels=128),
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
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(num_convs=2, in_channels=128, conv_out_channels=128),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=250),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=250)),
)
