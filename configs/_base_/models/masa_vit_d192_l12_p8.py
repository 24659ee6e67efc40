# As wide as ViT-Ti, in 8x8 patches: 16 tokens of a 32x32 image, which two CPU cores can train.
model = dict(
    type='ImageClassifier',
    model_name='vit_tiny_masa_s4',
    model_args=dict(embed_dim=192, depth=12, num_heads=3, mlp_ratio=1.0, patch_size=8),
)
