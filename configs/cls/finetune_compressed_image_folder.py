# Fine-tune a compressed ViT-B/16 on your own images.
#
#   masa-vit train masa_vit::cls/finetune_compressed_image_folder.py --cfg-options \
#       model.model_name=local-dir:FOLDER model.init_from=FOLDER model.num_classes=3 \
#       train_dataloader.dataset.data_root=my_images val_dataloader.dataset.data_root=my_images
#
# FOLDER is what `masa-vit compress` wrote. A head for another number of classes starts anew.
_folder = 'work_dirs/compressed_vit_base'

_base_ = [
    '../_base_/datasets/image_folder.py',
    '../_base_/schedules/finetune.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    model_name=f'local-dir:{_folder}',
    model_args=dict(img_size=224, drop_path_rate=0.1),  # the others stand in the folder
    num_classes=10,
    label_smoothing=0.1,
    init_from=_folder,
)
# The mean and std of the original belong to its weights (config.json in the folder has them, in
# 0..1); ImageNet's are the default. Of most of timm's vit_base_patch16_224:
#   data_preprocessor = dict(
#       type='ImagePreprocessor', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]
#   )
#
# To learn from the dense original, too, which has been fine-tuned on the same classes:
#   model = dict(
#       type='DistilledClassifier',
#       teacher=dict(
#           model_name='vit_base_patch16_224',
#           init_from='work_dirs/dense/epoch_20.pth',
#       ),
#       alpha=0.5,
#       temperature=2.0,
#   )
# An original with other classes teaches by its attention alone: alpha=0.0, feature_weight=1.0.
