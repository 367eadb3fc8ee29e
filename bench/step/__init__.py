"""The benchmark of a whole training step: cases, ways to do it, memory, tables."""
