"""The main job from a checkout: `python train.py ...` is `tawin train ...`, and torchrun takes it as its script.

What it does, to read from top to bottom: `tawin/cli/train.py`, which opens a run, and `tawin/train/pipeline.py`, which
trains.
"""

import sys

from tawin.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
