"""What the compiler says of a donated step: seconds of compilation and bytes of memory."""

from __future__ import annotations

import time
from typing import Any

import jax
from flax import nnx

from experiments.bench_training_models import Problem, cross_entropy
from nagjax import training


def memory(step: training.TrainStep, problem: Problem) -> dict[str, Any]:
    """Compiles a donated step, and the loss and gradients alone.

    Returns:
        CPU seconds of compilation (without tracing and lowering); `peak_bytes`, which is arguments + outputs - aliased
        + temporaries of the program; and `bound_bytes`: parameters, optimizer state and batch (the arguments), the
        gradients, and the temporaries of the gradient alone, which hold the activations.
    """
    state, batch = step.init(), next(iter(problem.batches(1)))
    program, seconds = _compiled(jax.jit(step, donate_argnums=0), state, batch)
    graph, variables, rest = nnx.split(problem.build(), nnx.Param, ...)
    params = nnx.as_pure(variables)

    def loss(params: Any, batch: Any) -> jax.Array:
        return cross_entropy(nnx.merge(graph, params, rest, copy=True), batch)

    gradient, _ = _compiled(jax.jit(jax.value_and_grad(loss)), params, batch)
    sizes = {
        "arguments": program.memory_analysis().argument_size_in_bytes,
        "gradients": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "activations": gradient.memory_analysis().temp_size_in_bytes,
    }
    return {
        "compile_seconds": seconds,
        "peak_bytes": _peak(program),
        "bound_bytes": sum(sizes.values()),
        "bound_parts": sizes,
    }


def _compiled(function: Any, *arguments: Any) -> tuple[Any, float]:
    jax.clear_caches()
    lowered = function.lower(*arguments)
    start = time.process_time()
    program = lowered.compile()
    return program, time.process_time() - start


def _peak(program: Any) -> int:
    found = program.memory_analysis()
    return (
        found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    )
