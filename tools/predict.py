"""The command `masa-vit predict`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['predict', *sys.argv[1:]]))
