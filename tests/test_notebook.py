"""The tour in docs/ runs from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / 'docs' / 'tour.ipynb'


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch):
    root = str(TOUR.parents[1])
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([root, os.environ.get('PYTHONPATH', '')]))
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=250, resources={'metadata': {'path': tmp_path}}).execute()
    text = ''.join(o.get('text', '') for cell in notebook.cells for o in cell.get('outputs', []))
    assert 'model:     86,567,656 -> 67,693,480 (-21.8%)' in text
    assert 'VisionTransformer True' in text


def test_the_tour_is_stored_without_outputs():
    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)
