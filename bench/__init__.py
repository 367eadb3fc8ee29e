"""Benchmarks: our way of doing a piece of work against the peers' way, which must give the same answer first.

`python -m bench.foundation` measures all ratios in one run; `pytest bench/bench_<what>.py` measures one of them.
"""
