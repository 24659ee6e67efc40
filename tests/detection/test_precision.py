from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from mmdet.registry import MODELS

from masa_vit.detection import Float32HeadsHook
from masa_vit.training import load_config


def test_heads_answer_in_float32_under_autocast(det_config: Path) -> None:
    """bfloat16 cannot represent odd integers from 256 on."""
    model = MODELS.build(load_config(det_config).model).eval()

    def dtypes() -> set[torch.dtype]:
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            maps = model.extract_feat(torch.randn(1, 3, 64, 64))
            scores, boxes = model.rpn_head(maps)
            rois = torch.randn(2, 16, 14, 14)
            answers = [*scores, *boxes, *model.roi_head.bbox_head(rois[..., :7, :7])]
            return {answer.dtype for answer in [*answers, model.roi_head.mask_head(rois)]}

    assert dtypes() == {torch.bfloat16}
    for _ in range(2):  # once for training, once for testing
        Float32HeadsHook().before_run(SimpleNamespace(model=model))
    assert dtypes() == {torch.float32}
    assert len(model.rpn_head._forward_hooks) == 1
