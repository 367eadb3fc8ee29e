"""Experiments: the paper's claims, checked and extended, on real data with several seeds.

A table is a YAML file under tables/; `python -m experiments.run TABLE` runs its cells (a row on a data set with a
seed), keeps each as a parquet file, and writes tables and figures from them. The folder is not part of the package.
"""
