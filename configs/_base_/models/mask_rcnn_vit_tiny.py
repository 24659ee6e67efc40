# mask_rcnn_vit.py at 192 channels: ViT-Ti, 512 x 512 pixels (a map of 32 x 32 tokens, 16 windows).
_base_ = './mask_rcnn_vit.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=512),
    backbone=dict(
        model_name='vit_tiny_masa_s4',
        model_args=dict(img_size=512),
        window_size=8,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=192),
)
