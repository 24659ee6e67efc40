"""The command `masa-vit fold`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['fold', *sys.argv[1:]]))
