"""The theory of arXiv 2604.22504, checked numerically: a module a claim, each with `Options` and `run(options, seed)`.

`run` returns values (a name, a number) and series (what `figures` draws). It needs no data set.
"""
