"""One loss and one optimizer on many devices: mean gradients under every mapping, and where arrays lie on a mesh."""

from nagjax.training.gradients import mean as mean
from nagjax.training.gradients import mean_loss as mean_loss
from nagjax.training.gradients import value_and_grad as value_and_grad
from nagjax.training.layout import Layout as Layout
from nagjax.training.layout import data_parallel as data_parallel
from nagjax.training.layout import fsdp as fsdp
from nagjax.training.layout import zero1 as zero1
from nagjax.training.placement import bytes_per_device as bytes_per_device
from nagjax.training.placement import init_sharded as init_sharded
from nagjax.training.placement import param_sharding as param_sharding
from nagjax.training.placement import replicated as replicated
from nagjax.training.placement import state_sharding as state_sharding
