"""What large catalogues and long logs cost: `python -m bench.scale.trie_build`, `python -m bench.scale.data_walk`."""
