"""The command `masa-vit test`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['test', *sys.argv[1:]]))
