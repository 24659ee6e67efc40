# The first 8 training images, learnt by heart and tested on themselves: a check that all of it works.
# An epoch is 50 times these images, 100 steps.
_base_ = './mask_rcnn_vit_tiny_masa_mini.py'

_images = dict(**_base_.train_dataloader.dataset, indices=8)
_images['pipeline'] = [step for step in _images['pipeline'] if step['type'] != 'RandomFlip']
train_dataloader = dict(
    dataset=dict(_delete_=True, type='RepeatDataset', times=50, dataset=_images),
)

_pack = dict(**_base_.val_dataloader.dataset.pipeline[-1])
_pack['meta_keys'] = (*_pack['meta_keys'], 'instances')
val_dataloader = dict(
    dataset=dict(
        ann_file=_base_.train_dataloader.dataset.ann_file,
        data_prefix=_base_.train_dataloader.dataset.data_prefix,
        indices=8,
        pipeline=[*_base_.val_dataloader.dataset.pipeline[:-1], _pack],
    )
)
test_dataloader = val_dataloader
# compared with the annotations that the dataset loads: the file has those of all other images, too
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=4, val_interval=2)
default_hooks = dict(visualization=dict(num_images=8))
