# What every detection run shares: hooks, logging, pictures of predictions.
_base_ = './default_runtime.py'

default_scope = 'mmdet'
custom_imports = dict(imports=['masa_vit.detection'])

default_hooks = dict(
    checkpoint=dict(save_best='auto'),  # the first metric: coco/bbox_mAP, pascal_voc/mAP
    visualization=dict(type='ValidationPicturesHook', num_images=4, score_thr=0.3),
)
custom_hooks = [
    dict(type='DetClassesCheckHook'),
    dict(type='StrideCheckHook'),
    dict(type='DataReportHook'),
    dict(type='Float32HeadsHook'),
    dict(type='ParameterTableHook'),
    dict(type='CoefficientHook'),
    dict(type='ProgressHook'),
    dict(type='SummaryHook'),
]
visualizer = dict(type='DetLocalVisualizer', name='visualizer')
env_cfg = dict(cudnn_benchmark=False)  # the images of a run have many sizes
