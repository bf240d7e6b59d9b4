"""Small Flax nnx models that the experiments train."""

from nagjax.models.char_transformer import CharTransformer as CharTransformer
from nagjax.models.cnn import CNN as CNN
from nagjax.models.mlp import MLP as MLP
from nagjax.models.resnet import ResNet as ResNet
