"""What a run keeps and what goes on around it: its folder, checkpoints, signals, processes, guards."""
