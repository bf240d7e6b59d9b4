"""Checkpoints of a training run."""

from nagjax.training.checkpoint.checkpoints import Checkpoints as Checkpoints
from nagjax.training.checkpoint.reading import Restored as Restored
