"""Two processes on the CPU (two_ranks.py), and what they have to agree on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

Seen = tuple[Path, list[dict]]


@pytest.fixture(scope='module')
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The folder of a run of the two processes, and what each of them saw."""
    folder = tmp_path_factory.mktemp('two_ranks')
    script = Path(__file__).with_name('two_ranks.py')
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), folder],
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], '\n'.join(errors)
    return folder, [json.loads((folder / f'{rank}.json').read_text()) for rank in range(2)]


def test_rank_0_downloads(seen: Seen) -> None:
    folder, ranks = seen
    assert (folder / 'train' / 'downloads').read_text() == 'rank 0\n'
    assert [rank['download'] for rank in ranks] == [2, 2]


def test_a_failed_download_fails_on_every_rank(seen: Seen) -> None:
    folder, ranks = seen
    assert (folder / 'val' / 'downloads').read_text() == 'rank 0\n'
    assert ranks[0]['no_network'].endswith('no network')
    assert ranks[1]['no_network'] == 'RuntimeError: rank 0 failed: OSError: no network'


def test_skipped_images_of_all_ranks_are_counted(seen: Seen) -> None:
    for rank in seen[1]:
        (text,) = rank['skipped']
        assert text.startswith('val: 3 images, on all ranks together,')


def test_a_rank_without_a_readable_image_takes_part(seen: Seen) -> None:
    for together, alone in (changes for rank in seen[1] for changes in rank['changes']):
        assert alone != [0, 0, 0]
        assert together == pytest.approx([change / 2 for change in alone], rel=1e-4)
