"""Settings of the whole suite: no test fails for being slow on a busy machine."""

import hypothesis

hypothesis.settings.register_profile("tawin", deadline=None)
hypothesis.settings.load_profile("tawin")
