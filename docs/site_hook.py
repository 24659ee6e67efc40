"""Add the pages beside `docs/` to the site, and adapt links between them and `docs/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

PAGES = {
    'configs/cls/README.md': 'recipes_cls.md',
    'configs/det/README.md': 'recipes_det.md',
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'CONTRIBUTING.md',
    'SECURITY.md': 'SECURITY.md',
    'CHANGELOG.md': 'CHANGELOG.md',
}
OTHERS = ('LICENSE', 'CITATION.cff')
"""Files without a page; links to them become text."""


def on_files(files: Any, config: Any) -> Any:
    """Generate the pages."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding='utf-8')
        text = re.sub(r'\]\((\.\./\.\./)?docs/', '](', text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Point links to files of the repository to their pages."""
    for source, page in PAGES.items():
        markdown = re.sub(rf'\]\((?:\.\./)?{source}', f']({page}', markdown)
    return re.sub(rf'\[([^]]*)\]\((?:\.\./)?(?:{"|".join(OTHERS)})\)', r'\1', markdown)
