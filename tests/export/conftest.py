"""What the formats have in common."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from masa_vit.export.parity import Form


@pytest.fixture
def wrong_weights(monkeypatch):
    """Write other weights than those that are to be written."""
    right = Form.stored

    def stored(self: Form) -> nn.Module:
        model = right(self)
        with torch.no_grad():
            model.head.bias.add_(1)
        return model

    def arrange() -> None:
        monkeypatch.setattr(Form, 'stored', stored)

    return arrange
