# The paper's largest ViT: 24 layers of width 256, MLP ratio 1; S=4 atoms a projection
# for L=24 layers: 1 - 4/24 = 83.3 % of the attention's weights go.
model = dict(
    type='ImageClassifier',
    model_name='vit_tiny_masa_s4',
    model_args=dict(embed_dim=256, depth=24, num_heads=8, mlp_ratio=1.0),
)
