"""Kernels compiled for GPUs that are not there: `python -m tools.compiled.report`."""
