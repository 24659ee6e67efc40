"""The command `masa-vit`; each command is a module with its arguments, its help and its run."""

from masa_vit.cli.main import main

__all__ = ['main']
