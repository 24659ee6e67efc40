# The paper's middle ViT: 12 layers of width 256, MLP ratio 1; S=4 atoms a projection
# for L=12 layers: 1 - 4/12 = 66.7 % of the attention's weights go.
model = dict(
    type='ImageClassifier',
    model_name='vit_tiny_masa_s4',
    model_args=dict(embed_dim=256, depth=12, num_heads=8, mlp_ratio=1.0),
)
