"""What a Flax user needs around an accelerated optimizer."""

from nagjax.training.batch_norm import recompute_batch_statistics as recompute_batch_statistics
