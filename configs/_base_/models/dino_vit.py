# DINO (arXiv 2203.03605) with four levels on a plain vision transformer. The values are those of mmdet's
# dino-4scale_r50; the neck gives the levels that its ChannelMapper makes of a ResNet, strides 8 to 64.
_channels, _levels = 256, 4
_feed_forward = dict(embed_dims=_channels, feedforward_channels=2048, ffn_drop=0.0)
_deformable = dict(embed_dims=_channels, num_levels=_levels, dropout=0.0)

model = dict(
    type='DINO',
    num_queries=900,
    with_box_refine=True,
    as_two_stage=True,
    # mean and std are ImageNet's, as in configs/cls; some of timm's ViTs want 127.5 for both.
    # All images are padded to one square, as in ViTDet: a batch does not change its images' results
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1024,
    ),
    backbone=dict(
        type='MasaViT', model_name='vit_base_masa_s4', window_size=14, drop_path_rate=0.1
    ),
    neck=dict(type='SimpleFPN', in_channels=768, out_channels=_channels, strides=[8, 16, 32, 64]),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=_deformable, ffn_cfg=_feed_forward)),
    decoder=dict(
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=_channels, num_heads=8, dropout=0.0),
            cross_attn_cfg=_deformable,
            ffn_cfg=_feed_forward,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=_channels // 2, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type='DINOHead',
        num_classes=80,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=300),
)
