"""The report of runs: a page and its figures."""
