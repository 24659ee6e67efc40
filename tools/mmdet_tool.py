"""The command `masa-vit mmdet`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['mmdet', *sys.argv[1:]]))
