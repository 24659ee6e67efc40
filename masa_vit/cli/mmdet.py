"""`masa-vit mmdet`: the tools of MMDetection, with the configs and operators of this package."""

from __future__ import annotations

import argparse
import difflib
import runpy
import sys
from pathlib import Path

EXAMPLES = """examples:
  masa-vit mmdet browse_dataset my_detector.py --not-show --output-dir pictures/
  masa-vit mmdet test my_detector.py work_dirs/my_detector/epoch_50.pth --out results.pkl
  masa-vit mmdet confusion_matrix my_detector.py results.pkl figures/
  masa-vit mmdet analyze_logs plot_curve work_dirs/my_detector/*/vis_data/scalars.json \\
      --keys loss --out loss.png
  masa-vit mmdet get_flops masa_vit::det/mask_rcnn_vit_tiny_masa_mini.py"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit mmdet`."""
    parser.add_argument(
        'tool', metavar='TOOL', help='a file in the folder `tools` of MMDetection, without .py'
    )
    parser.add_argument(
        'arguments',
        nargs=argparse.REMAINDER,
        metavar='...',
        help='arguments of the tool; or --help',
    )


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit mmdet`."""
    import masa_vit.detection  # noqa: F401  the tools import mmdet, which needs the operators
    from masa_vit.utils.config_paths import PACKAGE, resolve_config

    tool = _find(args.tool)
    given = [
        str(resolve_config(text)) if text.startswith(f'{PACKAGE}::') else text
        for text in args.arguments
    ]
    before = sys.argv
    sys.argv = [str(tool), *given]
    try:
        runpy.run_path(str(tool), run_name='__main__')
    finally:
        sys.argv = before
    return 0


def _find(name: str) -> Path:
    """Return the file of a tool: in the wheel of mmdet, or in its checkout."""
    import mmdet

    package = Path(mmdet.__file__).parent
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        # of two tools of one name the one in the outer folder
        paths = sorted(folder.rglob('*.py'), key=lambda path: -len(path.parts))
        tools = {path.stem: path for path in paths}
        if name.removesuffix('.py') in tools:
            return tools[name.removesuffix('.py')]
        if tools:
            close = difflib.get_close_matches(name, tools, n=3)
            raise ValueError(
                f'MMDetection has no tool {name!r}'
                + (f'; did you mean {" or ".join(close)}?' if close else '')
                + f' Its tools: {", ".join(sorted(tools))}'
            )
    raise FileNotFoundError(f'the installed mmdet ({package}) has no folder with tools')
