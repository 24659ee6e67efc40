"""A tiny COCO data set that the tests make for themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

import masa_vit.detection  # noqa: F401  registers its classes, before anything else imports mmdet

sys.path.insert(0, str(Path(__file__).parent))  # coco_data

from tiny_detector import CLASSES, write_coco, write_config


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """Types are looked up as in a detection run, whatever ran before in this process."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def coco_classes() -> tuple[str, ...]:
    return CLASSES


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """See `write_coco`."""
    return write_coco(tmp_path / 'coco')


@pytest.fixture
def det_config(coco_root: Path, tmp_path: Path) -> Path:
    """A config file: see `write_config`."""
    return write_config(tmp_path / 'detector.py', coco_root)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(
        'masa_vit.detection.coco_dataset.print_log',
        lambda text, _, level: told.append((level, text)),
    )
    return told


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    entries: list[tuple[str, int]] = []
    monkeypatch.setattr(
        'masa_vit.detection.backbone.print_log',
        lambda text, _, level: entries.append((text, level)),
    )
    return entries
