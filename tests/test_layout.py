"""The structure of the package: imports point one way, names are unique."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import masa_vit

PACKAGE = Path(masa_vit.__file__).parent
BASE = ('layers', 'utils')
MODELS = (*BASE, 'models')
MAY_IMPORT = {
    'utils': (),
    'layers': (),
    'models': BASE,
    'export': MODELS,
    'inspection': MODELS,
    'compression': (*MODELS, 'export', 'inspection'),
    'benchmark': (*MODELS, 'export', 'compression'),
    'training': (*MODELS, 'export', 'inspection', 'compression', 'benchmark'),
    'detection': (*MODELS, 'export', 'benchmark', 'training'),
}
DEPRECATED = ('cls', 'det', 'engine')
UP = {('training/configs.py', 'detection')}  # at run time, for configs of mmdet


def modules():
    for path in sorted(PACKAGE.rglob('*.py')):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in DEPRECATED:
            yield name, ast.parse(path.read_text(encoding='utf-8'))


def imported(tree):
    """The packages of ours that a module imports."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == 'masa_vit':
            names = [f'masa_vit.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'relative import'
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith('masa_vit.') and (PACKAGE / name.split('.')[1]).is_dir():
                yield name.split('.')[1]


def test_imports_point_one_way():
    wrong = [
        f'{name} imports {package}'
        for name, tree in modules()
        if len(name.parts) > 1 and name.parts[0] in MAY_IMPORT
        for package in {*imported(tree)}
        if package not in (name.parts[0], *MAY_IMPORT[name.parts[0]])
        and (name.as_posix(), package) not in UP
    ]
    assert not wrong


def test_every_package_is_listed():
    found = {name.parts[0] for name, _ in modules() if len(name.parts) > 1}
    assert found == {*MAY_IMPORT, 'cli'}


def test_module_names_are_unique():
    counts = Counter(
        name.stem for name, _ in modules() if name.parts[0] != 'cli' and name.stem != '__init__'
    )
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_module_bears_the_name_of_its_function():
    same = [
        name.as_posix()
        for name, tree in modules()
        if name.parts[0] != 'cli'
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name.stem
    ]
    assert same == []


@pytest.mark.parametrize(
    ('old', 'new', 'name'),
    [
        ('cls', 'training', 'ImageClassifier'),
        ('engine', 'training', 'train'),
        ('det', 'detection', 'MasaViT'),
    ],
)
def test_deprecated_names(old, new, name):
    pytest.importorskip('mmdet' if old == 'det' else 'mmengine', reason='of the extra')
    code = (
        'import warnings\n'
        'with warnings.catch_warnings(record=True) as told:\n'
        '    warnings.simplefilter("always")\n'
        f'    import masa_vit.{old}\n'
        f'import masa_vit.{new}\n'
        f'assert masa_vit.{old}.{name} is masa_vit.{new}.{name}\n'
        f'assert any("masa_vit.{old} is deprecated" in str(each.message) for each in told)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
