"""The same networks and loop in PyTorch, where the package is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from experiments.bench_training_loops import Loop
from experiments.bench_training_models import HEADS, MOMENTUM, VOCABULARY, Problem


def threads() -> int:
    """The cores at hand."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loop(problem: Problem, steps: int, build: Callable[[], Any], threads: int, name: str) -> Loop:
    """Eager steps over tensors: zero_grad, forward, backward, and SGD's fused update.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
    """
    import torch

    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.rate, momentum=MOMENTUM, nesterov=True, fused=True)
    inputs, labels = torch.from_numpy(problem.inputs.copy()), torch.from_numpy(problem.labels.copy()).long()
    inputs = inputs if inputs.is_floating_point() else inputs.long()
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    last: list[Any] = []

    def batches() -> Iterator[Any]:
        torch.set_num_threads(threads)
        taken = 0
        while taken < steps:
            for rows in torch.randperm(len(inputs)).split(problem.batch):
                if taken < steps and len(rows) == problem.batch:
                    yield inputs[rows], labels[rows]
                    taken += 1

    def call(batch: Any) -> None:
        optimizer.zero_grad()
        logits = model(batch[0])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())
        loss.backward()
        optimizer.step()
        last[:] = [loss]

    return Loop(name, call, batches, lambda: last[0].item(), steps)


def parameters(model: Any) -> tuple[int, int]:
    """The number of arrays and of numbers that are trained."""
    shapes = [tensor.numel() for tensor in model.parameters()]
    return len(shapes), sum(shapes)


def mlp(dropout: float) -> Any:
    """64-128-10."""
    from torch import nn

    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10))


def cnn() -> Any:
    """conv 64, pool, conv 64, pool, 512, 10, with ReLU after pooling."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def transformer(layers: int, width: int, length: int) -> Any:
    """The decoder of `bench_training_models.Transformer`."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.perceptron_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
            self.attention_output = nn.Linear(width, width)
            self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, hidden: Any) -> Any:
            normed = self.attention_norm(hidden)
            heads = (*hidden.shape[:-1], HEADS, width // HEADS)
            parts = (part(normed).view(heads).transpose(1, 2) for part in (self.queries, self.keys, self.values))
            mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            hidden = hidden + self.attention_output(mixed.transpose(1, 2).reshape(hidden.shape))
            expanded = self.expand(self.perceptron_norm(hidden))
            return hidden + self.contract(nn.functional.gelu(expanded, approximate="tanh"))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
            for table in (self.tokens, self.positions):
                nn.init.normal_(table.weight, std=0.02)
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.norm = nn.LayerNorm(width, eps=1e-6)

        def forward(self, tokens: Any) -> Any:
            hidden = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
            return self.norm(self.blocks(hidden)) @ self.tokens.weight.T

    return Transformer()
