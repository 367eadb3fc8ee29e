"""Real trainings, killed and resumed: `python -m tools.faults.run`."""
