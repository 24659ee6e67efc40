"""The examples in the help of each command."""

from __future__ import annotations

EXAMPLES = {
    'train': """examples:
  masa-vit train masa_vit::cls/vit_tiny_masa_s4_digits.py
  masa-vit train my_config.py --work-dir work_dirs/a --cfg-options train_cfg.max_epochs=5
  masa-vit train my_config.py --work-dir work_dirs/a --resume
  torchrun --nproc-per-node 2 tools/train.py my_config.py --launcher pytorch""",
    'test': """examples:
  masa-vit test my_config.py work_dirs/a/epoch_15.pth
  masa-vit test my_config.py epoch_15.pth --out metrics.json --cfg-options val_dataloader.batch_size=8
for a detector, AP per class, and the predictions as COCO results (a.bbox.json, a.segm.json):
  masa-vit test my_config.py epoch_12.pth --cfg-options test_evaluator.classwise=True
  masa-vit test my_config.py epoch_12.pth --cfg-options test_evaluator.outfile_prefix=a""",
    'predict': """examples:
  masa-vit predict my_config.py epoch_15.pth cat.jpg photos/ 'more/*.png'
  masa-vit predict my_config.py epoch_15.pth photos/ --topk 3 --out predictions.json
with the config of a detector, objects, and pictures of them:
  masa-vit predict my_config.py epoch_12.pth photos/ --score-thr 0.5 --out detections/""",
    'compress': """examples:
  masa-vit compress vit_base_patch16_224 --pretrained --out compressed/
  masa-vit compress my_config.py --checkpoint work_dirs/a/epoch_15.pth --out compressed/ \\
      --num-atoms auto --budget 0.33 --residual-rank energy --weighting fisher
  masa-vit compress vit_base_patch16_224 --pretrained --calibration train/ --val val/ --out c/ \\
      --groups kl --num-groups 3 --align rotation""",
    'fold': """examples:
  masa-vit fold my_config.py work_dirs/a/epoch_15.pth --out folded/
  masa-vit test folded/my_config_folded.py folded/my_config_folded.pth""",
    'export': """examples:
  masa-vit export my_config.py --checkpoint epoch_15.pth --format folded --out folded/
  masa-vit export compressed/ --format hub --bake --dtype bf16 --out small/
  masa-vit export compressed/ --format onnx-shared --out model.onnx
  masa-vit export vit_base_masa_s4 --checkpoint a.safetensors --format torch-export --out a.pt2""",
    'inspect': """examples:
  masa-vit inspect vit_base_masa_s4 --out atoms/
  masa-vit inspect work_dirs/a --out atoms/ --images photos/
  masa-vit inspect work_dirs/a --out atoms/ --run work_dirs/a --format html,png,pdf
  masa-vit inspect compressed/ work_dirs/tuned --out beside/
  masa-vit inspect a.pth b.pth --against c.safetensors --out beside/ --format table""",
    'compare': """examples:
  masa-vit compare masa_vit::cls/vit_tiny_masa_s4_digits.py masa_vit::cls/vit_tiny_dense_digits.py
  masa-vit compare a.py b.py --work-dir work_dirs/pair --resume""",
    'benchmark': """examples:
  masa-vit benchmark vit_base_masa_s4 --batch-size 1 4 16 64 --dtype fp32 bf16 --json times.json
  masa-vit benchmark vit_base_masa_s4 --measure train memory --batch-size 4 --checkpointing
  masa-vit benchmark vit_base_masa_s4 --measure load fold compress sizes
  masa-vit benchmark vit_tiny_masa_s4 --against vit_tiny_masa_s4 --against-args num_atoms=2
  masa-vit benchmark masa_vit::det/mask_rcnn_vit_masa.py --img-size 512 --batch-size 1""",
}
