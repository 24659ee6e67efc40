"""The command `masa-vit benchmark`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['benchmark', *sys.argv[1:]]))
