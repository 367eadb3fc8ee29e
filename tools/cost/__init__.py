"""What a training step costs by arithmetic: the tables of docs/PERFORMANCE.md."""
