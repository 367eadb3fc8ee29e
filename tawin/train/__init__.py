"""Training: the stages of a run, their loops, and the engine that runs a model."""
