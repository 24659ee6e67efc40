# Fine-tune given weights on your own images, at another image size and number of classes.
#
#   masa-vit train masa_vit::cls/finetune_image_folder.py --cfg-options \
#       model.init_from=my_masa_vit.safetensors model.num_classes=3 \
#       train_dataloader.dataset.data_root=my_images val_dataloader.dataset.data_root=my_images
#
# init_from takes a checkpoint of the same architecture, or the name of a timm model, whose
# pretrained weights timm fetches; a dense model is fine-tuned by the same recipe with
#       model.model_name=vit_small_patch16_224 model.init_from=vit_small_patch16_224
# There are no pretrained MASA weights to fetch yet.
_base_ = [
    '../_base_/datasets/image_folder.py',
    '../_base_/schedules/finetune.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    model_name='vit_small_masa_s4',
    model_args=dict(img_size=224, drop_path_rate=0.1),
    num_classes=10,
    label_smoothing=0.1,
    init_from='weights.safetensors',
)
