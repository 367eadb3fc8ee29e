"""Sequence models that recommend by one score an item, for the main table: SASRec and GRU4Rec.

They know nothing of tokens, semantic ids or beams. `fit` trains one on sequences of dense item indexes, `ranks` ranks
the whole catalogue with it.
"""

from .options import SequenceModelOptions
from .ranking import ranks
from .sequence_model import SequenceModel
from .training import MODELS, Epoch, fit

__all__ = ["MODELS", "Epoch", "SequenceModel", "SequenceModelOptions", "fit", "ranks"]
