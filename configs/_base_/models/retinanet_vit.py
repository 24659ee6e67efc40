# RetinaNet on a plain vision transformer: mmdet's own with another backbone and neck. Its anchors have
# the strides 8 to 128, and so has the neck.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

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
    neck=dict(
        _delete_=True,
        type='SimpleFPN',
        in_channels=768,
        out_channels=256,
        strides=[8, 16, 32, 64, 128],
    ),
)
