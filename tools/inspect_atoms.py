"""The command `masa-vit inspect`; see its --help."""

import sys

from masa_vit.cli import main

if __name__ == '__main__':
    sys.exit(main(['inspect', *sys.argv[1:]]))
