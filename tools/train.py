"""The command `masa-vit train`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
