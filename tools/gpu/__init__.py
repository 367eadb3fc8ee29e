"""One call on a machine with a GPU: `python -m tools.gpu`."""
