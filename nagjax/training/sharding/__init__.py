"""One loss and one optimizer on many devices: mean gradients under every mapping, and where arrays lie on a mesh."""

from nagjax.training.gradients import mean as mean
from nagjax.training.gradients import mean_loss as mean_loss
from nagjax.training.gradients import value_and_grad as value_and_grad
from nagjax.training.sharding.layout import Layout as Layout
from nagjax.training.sharding.layout import data_parallel as data_parallel
from nagjax.training.sharding.layout import fsdp as fsdp
from nagjax.training.sharding.layout import zero1 as zero1
from nagjax.training.sharding.placement import bytes_per_device as bytes_per_device
from nagjax.training.sharding.placement import init_sharded as init_sharded
from nagjax.training.sharding.placement import param_sharding as param_sharding
from nagjax.training.sharding.placement import replicated as replicated
from nagjax.training.sharding.placement import state_sharding as state_sharding
