"""Small Flax nnx models that the experiments train."""

from nagjax.models.char_transformer import CharTransformer as CharTransformer
from nagjax.models.mlp import MLP as MLP
