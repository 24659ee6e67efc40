"""The command `masa-vit compress`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['compress', *sys.argv[1:]]))
