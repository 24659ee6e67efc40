import masa_vit.cls  # noqa: F401  registers its classes
