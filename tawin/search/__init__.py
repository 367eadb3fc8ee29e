"""Constrained beam search over the item trie: called by rollouts, evaluation and serving."""
