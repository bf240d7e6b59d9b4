"""The workloads of `compare`: small enough for two cores, from a convex problem to a transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import data
from experiments.compare_training import Plan, Workload
from nagjax.models import MLP, CharTransformer

DROPOUT = 0.2
QUICK_SHARE = 4


@dataclass(frozen=True)
class Task:
    """One workload, and how much of it a default run does."""

    load: Callable[[Task, str, Path | None, bool], Workload]
    plan: Plan
    trials: int  # settings that tuning tries for each optimizer
    tuning_seeds: int
    seeds: int
    rates: int  # learning rates in the figure of sensitivity
    data_set: str = ""  # "" takes the one that --text names

    def plan_of(self, quick: bool) -> Plan:
        """A quarter of the steps for a quick run."""
        return dataclasses.replace(self.plan, steps=self.plan.steps // QUICK_SHARE) if quick else self.plan


def _digits(task: Task, data_set: str, folder: Path | None, quick: bool) -> Workload:
    images = _images(data.load(data_set, folder))
    # One split for all seeds: losses of different validation images would hide the differences of optimizers.
    order = np.random.default_rng(0).permutation(len(images.labels))
    train, measured, test = np.split(order, [1149, 1437])
    parts = [data.Images(images.inputs[part], images.labels[part]) for part in (train, measured, test)]
    definition = f"MLP 64-128-10, dropout {DROPOUT}, split 1149/288/360"
    return _classifier(task, "digits", "digits, MLP 64-128-10", definition, (64, 128, 10), parts, quick)


def _fashion_mnist(task: Task, data_set: str, folder: Path | None, quick: bool) -> Workload:
    split = data.load(data_set, folder)
    assert isinstance(split, data.Split)
    train, test = split
    bounds = ((train, 0, 10_000), (train, 58_000, 60_000), (test, 0, 2_000))
    parts = [data.Images(part.inputs[start:end], part.labels[start:end]) for part, start, end in bounds]
    definition = f"MLP 784-64-10, dropout {DROPOUT}, images 0-9999 / 58000-59999 / test 0-1999"
    title = "Fashion-MNIST (10,000 images), MLP 784-64-10"
    workload = _classifier(task, "fashion_mnist", title, definition, (784, 64, 10), parts, quick)
    return dataclasses.replace(workload, near=1.05)


def _classifier(
    task: Task, name: str, title: str, definition: str, sizes: tuple[int, ...], parts: list[data.Images], quick: bool
) -> Workload:
    def objective(model: MLP, part: Any, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        inputs, labels = part
        logits = model(inputs, deterministic=deterministic)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(axis=-1) == labels).mean(dtype=jnp.float32)

    plan = task.plan_of(quick)
    return Workload(
        name=name,
        title=title,
        loss_label="validation loss",
        fingerprint=data.fingerprint(data.Split(*parts[:2])) + data.fingerprint(parts[2]),
        definition=definition,
        plan=plan,
        **_device(parts),
        model=lambda rngs: MLP(sizes, dropout=DROPOUT, rngs=rngs),
        objective=objective,
        order=lambda key: _epochs(key, plan, len(parts[0].labels)),
        take=lambda train, indices: tuple(array[indices] for array in train),
    )


def _a9a(task: Task, data_set: str, folder: Path | None, quick: bool) -> Workload:
    split = data.load(data_set, folder)
    assert isinstance(split, data.Split)
    penalty = 1e-4

    def objective(model: MLP, part: Any, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        inputs, labels = part
        logits = model(inputs, deterministic=deterministic)[:, 0]
        losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(model, nnx.Param))))
        return losses.mean() + penalty / 2 * squares, ((logits > 0) == (labels > 0)).mean(dtype=jnp.float32)

    plan = task.plan_of(quick)
    return Workload(
        name="a9a",
        title="a9a, L2-regularized logistic regression",
        loss_label="objective on the training data",
        fingerprint=data.fingerprint(split),
        definition=f"logistic regression, 1e-4/2 |w|^2, {plan}",
        plan=plan,
        # A convex problem is judged by its own objective.
        **_device([split.train, split.train, split.test]),
        model=lambda rngs: MLP((data.A9A_FEATURES, 1), rngs=rngs),
        objective=objective,
        order=lambda key: _epochs(key, plan, len(split.train.labels)),
        take=lambda train, indices: tuple(array[indices] for array in train),
        decay=False,
        near=1.01,
    )


def _charlm(task: Task, data_set: str, folder: Path | None, quick: bool) -> Workload:
    text = data.load(data_set, folder)
    assert isinstance(text, str)
    # Every text of `data` is ASCII.
    alphabet, tokens = np.unique(np.frombuffer(text.encode("ascii"), np.uint8), return_inverse=True)
    tokens = tokens.astype(np.int32)
    context, width, layers, heads = 32, 32, 2, 2
    first, last = int(0.9 * len(tokens)), int(0.95 * len(tokens))

    def windows(part: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        starts = np.linspace(0, len(part) - context - 1, count).astype(int)
        return part[starts[:, None] + np.arange(context + 1)]

    def objective(model: CharTransformer, part: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        logits, after = model(part[:, :-1]), part[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, after)
        return losses.mean(), (logits.argmax(axis=-1) == after).mean(dtype=jnp.float32)

    plan = task.plan_of(quick)
    last_start = first - context - 1
    return Workload(
        name="charlm",
        title=f"{data.DATA_SETS[data_set].title}, transformer of {layers} blocks of width {width}",
        loss_label="validation loss",
        fingerprint=data.fingerprint(text),
        definition=f"transformer {context, width, layers, heads}, text 90/5/5 %, 64 windows",
        plan=plan,
        train=jnp.asarray(tokens[:first]),
        measured=jnp.asarray(windows(tokens[first:last], 64)),
        test=jnp.asarray(windows(tokens[last:], 64)),
        model=lambda rngs: CharTransformer(
            len(alphabet), context=context, width=width, layers=layers, heads=heads, rngs=rngs
        ),
        objective=objective,
        order=lambda key: jax.random.randint(key, (plan.steps, plan.batch), 0, last_start, jnp.int32),
        take=lambda train, starts: train[starts[:, None] + jnp.arange(context + 1)],
        near=1.02,
    )


def _images(value: data.Images | data.Split | str) -> data.Images:
    assert isinstance(value, data.Images)
    return value


def _device(parts: list[data.Images]) -> dict[str, Any]:
    train, measured, test = (tuple(jnp.asarray(array) for array in part) for part in parts)
    return {"train": train, "measured": measured, "test": test}


def _epochs(key: jax.Array, plan: Plan, rows: int) -> jax.Array:
    """Every epoch goes through the rows in an order of its own; the rows left over by its last batch are skipped."""
    batches = rows // plan.batch
    epochs = -(-plan.steps // batches)
    orders = jax.vmap(lambda key: jax.random.permutation(key, rows)[: batches * plan.batch])(
        jax.random.split(key, epochs)
    )
    return orders.astype(jnp.int32).reshape(-1, plan.batch)[: plan.steps]


TASKS: dict[str, Task] = {
    "digits": Task(_digits, Plan(steps=720, batch=32, every=10), 32, 3, 10, 13, "digits"),
    "fashion_mnist": Task(_fashion_mnist, Plan(steps=480, batch=64, every=20), 12, 2, 3, 9, "fashion_mnist"),
    "charlm": Task(_charlm, Plan(steps=240, batch=8, every=20), 16, 1, 3, 7),
    "a9a": Task(_a9a, Plan(steps=480, batch=64, every=20), 12, 2, 3, 9, "a9a"),
}


def load(name: str, text: str, folder: Path | None, quick: bool) -> Workload:
    """Reads the data of a task and puts it on the device."""
    task = TASKS[name]
    return task.load(task, task.data_set or text, folder, quick)
