"""`masa-vit inspect`: reports on what is shared, for people to look at (extra `inspect`)."""

from masa_vit.inspection.report import Report

__all__ = ['Report']
