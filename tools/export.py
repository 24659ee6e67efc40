"""The command `masa-vit export`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))
