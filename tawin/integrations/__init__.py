"""tawin inside other trainers. Each module imports its framework when it is used, never before."""
