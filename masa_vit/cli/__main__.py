"""`python -m masa_vit.cli`: the command `masa-vit`."""

import sys

from masa_vit.cli.main import main

sys.exit(main())
