# Step 2 of docs/evidence.md: learning rates, for the arms that have six seeds in the screening.
base = 'masa_vit::studies/cifar10_proxy.py'
seeds = [200]
reference = 'dense-1e-3'
metrics = ['accuracy/nll', 'accuracy/top1']
bounds = {'accuracy/nll': 0.025, 'accuracy/top1': 1.0}
_dense = dict(model_name='vit_tiny_patch16_224')
_models = {
    'dense': _dense,
    'masa-qkvo': dict(),
    'dense-narrow': dict(**_dense, model_args=dict(embed_dim=48)),  # as in the pilot
    'masa-qkv': dict(model_args=dict(scheme='masa-qkv')),
    'sequential': dict(model_args=dict(scheme='sequential')),
    'repeat': dict(model_args=dict(scheme='repeat')),
    'low-rank': dict(model_args=dict(scheme='low-rank', residual_rank=11)),  # as in the pilot
    'tied-qkv': dict(model_args=dict(scheme='tied-qkv')),
}
_confirmed = ('dense', 'masa-qkvo')


def _rates(name):
    """5e-4 for the confirmed arms only; 1.6e-2 for all but the dense ones."""
    low = ['5e-4'] if name in _confirmed else []
    high = [] if name.startswith('dense') else ['1.6e-2']
    return [*low, '1e-3', '2e-3', '4e-3', '8e-3', *high]


rows = {
    f'{name}-{rate}': dict(
        model=model,
        optim_wrapper=dict(optimizer=dict(lr=float(rate))),
        seeds=[200, 201] if name in _confirmed else [200],
    )
    for name, model in _models.items()
    for rate in _rates(name)
}
