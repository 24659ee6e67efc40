"""The command `masa-vit compare`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['compare', *sys.argv[1:]]))
