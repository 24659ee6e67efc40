"""The command `masa-vit data`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['data', *sys.argv[1:]]))
