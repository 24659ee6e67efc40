# Step 3 of docs/evidence.md: all schemes, each at the best learning rate of step 2. 78 runs.
base = 'masa_vit::studies/cifar10_proxy.py'
seeds = [0, 1, 2, 3, 4, 5]
reference = 'dense'
metrics = ['accuracy/nll', 'accuracy/top1']
bounds = {'accuracy/nll': 0.025, 'accuracy/top1': 1.0}


def _row(scheme, lr, seeds=seeds, **settings):
    model = dict(model_args=dict(scheme=scheme)) if scheme else {}
    return dict(
        model={**model, **settings.pop('model', {})},
        optim_wrapper=dict(optimizer=dict(lr=lr)),
        seeds=seeds,
        **settings,
    )


_dense = dict(model_name='vit_tiny_patch16_224')
_few = [0, 1, 2]
rows = {
    'dense': _row(None, 1e-3, model=_dense),
    'dense-narrow': _row(
        None,
        2e-3,
        model=_dense,
        match=dict(
            vary='model.model_args.embed_dim', among=range(32, 65, 4), to='masa-qkvo', count='total'
        ),
    ),
    'masa-qkvo': _row('masa-qkvo', 8e-3),
    'masa-qkv': _row('masa-qkv', 4e-3),
    'sequential': _row('sequential', 2e-3),
    'repeat': _row('repeat', 2e-3),
    'low-rank': _row(
        'low-rank',
        4e-3,
        match=dict(
            vary='model.model_args.residual_rank',
            among=range(4, 33),
            to='masa-qkvo',
            count='attention',
        ),
    ),
    'tied-qkv': _row('tied-qkv', 4e-3),
    # three seeds, at the rate of the nearest arm above
    **{
        name: _row(name, 8e-3, _few)
        for name in (
            'masa-mlp', 'masa-channel', 'masa-fc', 'masa-tied-qkv',
            'common-qv', 'common-qkv', 'common-qkvo',
        )
    },
    **{name: _row(name, 2e-3, _few) for name in ('cycle-reverse', 'single')},
    **{name: _row(name, 4e-3, _few) for name in ('tied-qk', 'tied-kv', 'gqa')},
}  # fmt: skip
