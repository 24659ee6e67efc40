# timm's ViT at 224 pixels, 16x16 patches, with DeiT's regularisation; S=4 atoms a projection
# for L=12 layers: two thirds of the attention's weights go.
model = dict(
    type='ImageClassifier',
    model_name='vit_tiny_masa_s4',
    model_args=dict(drop_path_rate=0.1),
    num_classes=1000,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5),
)
