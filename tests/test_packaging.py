"""What somebody gets who installs the wheel, without the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel, built by hatchling in this environment (no network)."""
    out = tmp_path_factory.mktemp('dist')
    code = f'import hatchling.build; hatchling.build.build_wheel({str(out)!r})'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
    (path,) = out.glob('*.whl')
    return path


def test_wheel_holds_package_configs_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(n for n in names if n.endswith('entry_points.txt'))
        assert 'masa-vit = masa_vit.cli:main' in archive.read(entry_points).decode()
    shipped = {p.relative_to(ROOT / 'configs') for p in (ROOT / 'configs').rglob('*.py')}
    for config in shipped:
        assert f'masa_vit/.mim/configs/{config.as_posix()}' in names
    assert 'masa_vit/py.typed' in names
    assert any(name.endswith('licenses/LICENSE') for name in names)
    assert not any(name.startswith(('tests/', 'docs/')) for name in names)


@pytest.mark.slow
def test_configs_of_an_installed_wheel_are_found(wheel, tmp_path):
    """As pip would unpack it, in a folder that the interpreter looks at first."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'\ntrain_cfg = dict(max_epochs=1)\n"
    )
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path / "site")!r})\n'
        'import masa_vit; from masa_vit.training.configs import load_config\n'
        f'assert masa_vit.__file__.startswith({str(tmp_path)!r})\n'
        'for name in ("mine.py", "masa_vit::cls/vit_tiny_masa_s4_digits.py"):\n'
        '    cfg = load_config(name)\n'
        '    assert cfg.model.model_name == "vit_tiny_masa_s4"\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
