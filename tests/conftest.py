"""Settings of the whole suite: no test fails for being slow on a busy machine, and small shapes run on one thread."""

import hypothesis
import torch

hypothesis.settings.register_profile("tawin", deadline=None)
hypothesis.settings.load_profile("tawin")
torch.set_num_threads(1)
