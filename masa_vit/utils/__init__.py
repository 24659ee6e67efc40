"""Helpers for files, images and arguments."""
