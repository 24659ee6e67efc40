# Step 1 of docs/evidence.md: the spread over seeds of four arms.
base = 'masa_vit::studies/cifar10_proxy.py'
seeds = [100, 101, 102, 103]
reference = 'dense'
metrics = ['accuracy/nll', 'accuracy/top1']
rows = {
    'dense': dict(model=dict(model_name='vit_tiny_patch16_224')),
    'masa-qkvo': dict(),
    'dense-narrow': dict(
        model=dict(model_name='vit_tiny_patch16_224'),
        match=dict(
            vary='model.model_args.embed_dim', among=range(32, 65, 4), to='masa-qkvo', count='total'
        ),
    ),
    'low-rank': dict(
        model=dict(model_args=dict(scheme='low-rank')),
        match=dict(
            vary='model.model_args.residual_rank',
            among=range(4, 33),
            to='masa-qkvo',
            count='attention',
        ),
    ),
}
