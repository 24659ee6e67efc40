# Fine-tune what `masa-vit compress` made of a trained vit_d64_l12_dense_cifar10.
#
# Another folder, also on the command line:
#   masa-vit train masa_vit::cls/finetune_compressed_cifar10.py --cfg-options \
#       model.model_name=local-dir:FOLDER model.init_from=FOLDER
_folder = 'work_dirs/compressed_d64'
_lr = 5e-4

_base_ = [
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/finetune_compressed.py',
    '../_base_/default_runtime.py',
]

# sizes, sharing and all other arguments of the model stand in the folder's config.json
model = dict(
    type='ImageClassifier',
    model_name=f'local-dir:{_folder}',
    num_classes=10,
    init_from=_folder,
)
optim_wrapper = dict(optimizer=dict(lr=_lr))
