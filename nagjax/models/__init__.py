"""Small Flax nnx models that the experiments train."""

from nagjax.models.mlp import MLP as MLP
