custom_imports = dict(imports=['masa_vit.training', 'toy'])
default_scope = 'mmengine'

model = dict(type='ToyModel')
train_dataloader = dict(
    dataset=dict(type='ToyData'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    batch_size=4,
    num_workers=0,
)
val_dataloader = dict(
    dataset=dict(type='ToyData', size=10, noise=0.0),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    batch_size=4,
    num_workers=0,
)
val_evaluator = dict(type='ToyError')
val_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
)
param_scheduler = dict(type='CosineAnnealingLR', convert_to_iter_based=True, T_max=3)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', save_best='error', rule='less', max_keep_ckpts=2),
    logger=dict(type='LoggerHook', interval=2),
)
custom_hooks = [
    dict(type='KillHook'),
    dict(type='EMAHook', momentum=0.1),
    dict(type='ParameterTableHook'),
    dict(type='CoefficientHook'),
    dict(type='ProgressHook'),
    dict(type='SummaryHook'),
]
visualizer = dict(
    type='Visualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
auto_scale_lr = dict(base_batch_size=8)
