"""What a Flax user needs around an accelerated optimizer: compiled steps and epochs, a loop, checkpoints."""

from nagjax.training.batch_norm import recompute_batch_statistics as recompute_batch_statistics
from nagjax.training.checkpoint import Checkpoints as Checkpoints
from nagjax.training.checkpoint import Restored as Restored
from nagjax.training.compiled import compiled as compiled
from nagjax.training.compiled import compiled_epoch as compiled_epoch
from nagjax.training.device_data import DeviceData as DeviceData
from nagjax.training.loop import Fit as Fit
from nagjax.training.loop import fit as fit
from nagjax.training.metrics import Metrics as Metrics
from nagjax.training.prefetch import prefetch as prefetch
from nagjax.training.reports import Record as Record
from nagjax.training.reports import early_stopping as early_stopping
from nagjax.training.reports import jsonl as jsonl
from nagjax.training.reports import tensorboard as tensorboard
from nagjax.training.state import TrainState as TrainState
from nagjax.training.step import TrainStep as TrainStep
