# The same, taught by the dense original too: loss = (1 - alpha) * cross entropy + alpha * T^2 * KL.
_base_ = './finetune_compressed_cifar10.py'

# the checkpoint that was compressed
_teacher = 'work_dirs/vit_d64_l12_dense_cifar10/epoch_15.pth'

model = dict(
    type='DistilledClassifier',
    teacher=dict(
        # vit_d64_l12_dense_cifar10; a folder that timm saved goes too: model_name='local-dir:FOLDER'
        model_name='vit_tiny_patch16_224',
        model_args=dict(
            embed_dim=64, depth=12, num_heads=4, mlp_ratio=1.0, img_size=32, patch_size=4
        ),
        init_from=_teacher,
    ),
    alpha=0.5,
    temperature=2.0,
    feature_weight=0.0,  # above 0: the outputs of every block's attention are to be alike, too
)
