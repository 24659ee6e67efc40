# What every run shares: hooks, logging, seed.
import sys

default_scope = 'mmengine'
custom_imports = dict(imports=['masa_vit.training'])

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),  # iterations between two lines of the log
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='SafeCheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy/top1'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='NumClassesCheckHook'),
    dict(type='ParameterTableHook'),
    dict(type='CoefficientHook'),
    dict(type='ProgressHook'),
    dict(type='SummaryHook'),
    dict(type='SkippedImagesHook'),
]

visualizer = dict(
    type='Visualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
log_processor = dict(by_epoch=True, window_size=50)
log_level = 'INFO'

env_cfg = dict(
    cudnn_benchmark=True,  # the images of a run have one size
    # forking a process that runs threads is unsafe on macOS
    mp_cfg=dict(
        mp_start_method='fork' if sys.platform == 'linux' else 'spawn', opencv_num_threads=0
    ),
    dist_cfg=dict(backend='nccl'),
)
randomness = dict(seed=0)
load_from = None
resume = False
