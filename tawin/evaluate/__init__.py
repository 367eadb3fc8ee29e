"""Ranks and metrics of a model, by search and exact, and of baselines that need no training."""
