"""The model and its forwards: what a decoder is, and how it runs prompts and all that follows them once."""
