"""Other frameworks' momentum, step for step, and states that move between them."""

from nagjax.conventions.convert import convert as convert
from nagjax.conventions.pytorch_nadam import pytorch_nadam as pytorch_nadam
from nagjax.conventions.sgd import keras_sgd as keras_sgd
from nagjax.conventions.sgd import pytorch_sgd as pytorch_sgd
