"""Groups of completions, their rewards and their loss."""
