"""Random and hostile input: `python -m tools.fuzz.run`."""
