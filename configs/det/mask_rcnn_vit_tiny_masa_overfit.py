# The first 8 training images, learnt by heart and tested on themselves: a check that all of it works.
# An epoch is 50 times these images, 100 steps.
_base_ = './mask_rcnn_vit_tiny_masa_mini.py'

_images = dict(**_base_.train_dataloader.dataset, indices=8)
_images['pipeline'] = [step for step in _images['pipeline'] if step['type'] != 'RandomFlip']
train_dataloader = dict(
    dataset=dict(_delete_=True, type='RepeatDataset', times=50, dataset=_images),
)
val_dataloader = dict(
    dataset=dict(
        ann_file=_base_.train_dataloader.dataset.ann_file,
        data_prefix=_base_.train_dataloader.dataset.data_prefix,
        indices=8,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/annotations/instances_train2017.json')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=6, val_interval=2)
default_hooks = dict(visualization=dict(num_images=8))
