# Step 2 of docs/evidence.md: the learning rate of the arms to be confirmed.
base = 'masa_vit::studies/cifar10_proxy.py'
seeds = [200, 201]
reference = 'dense-1e-3'
metrics = ['accuracy/nll', 'accuracy/top1']
bounds = {'accuracy/nll': 0.025, 'accuracy/top1': 1.0}
rows = {
    f'{name}-{rate}': dict(model=model, optim_wrapper=dict(optimizer=dict(lr=float(rate))))
    for name, model in (
        ('dense', dict(model_name='vit_tiny_patch16_224')),
        ('masa-qkvo', dict()),
    )
    for rate in ('5e-4', '1e-3', '2e-3', '4e-3')
}
