# COCO 2017 as in coco.py, boxes only.
_base_ = './coco.py'


def _without_masks(pipeline):
    return [
        {**step, 'with_mask': False} if step['type'] == 'LoadAnnotations' else step
        for step in pipeline
    ]


train_dataloader = dict(
    dataset=dict(pipeline=_without_masks(_base_.train_dataloader.dataset.pipeline))
)
val_dataloader = dict(dataset=dict(pipeline=_without_masks(_base_.val_dataloader.dataset.pipeline)))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
