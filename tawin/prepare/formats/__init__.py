"""The formats that `tawin prepare` reads, one a module."""
