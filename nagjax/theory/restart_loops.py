"""Reference loop of FISTA with adaptive restart, and the restart tests as their papers print them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nagjax.theory.convex_loops import Gradient, Trajectory, Vector
from nagjax.theory.sequences import fista_momenta


class Progress(NamedTuple):
    """What a restart test sees after x_k; points from before the last restart are None."""

    age: int  # updates since the last restart, with the one that reached x_k
    query: Vector  # y_{k-1}, from which x_k was reached
    last_query: Vector | None  # y_{k-2}
    answer: Vector  # x_k
    last_answer: Vector  # x_{k-1}
    earlier_answer: Vector | None  # x_{k-2}


def gradient_restart(progress: Progress) -> bool:
    """The gradient test, <y_{k-1} - x_k, x_k - x_{k-1}> > 0, of O'Donoghue and Candes, 2015, section 3.2."""
    moved = progress.answer - progress.last_answer
    return float((progress.query - progress.answer) @ moved) > 0


def speed_restart(least_age: int = 2) -> Callable[[Progress], bool]:
    """The speed test, |x_k - x_{k-1}| < |x_{k-1} - x_{k-2}|, of Su, Boyd and Candes, 2016, section 5.

    Args:
        least_age: k_min, the updates from one restart to the next, at least 2.

    Returns:
        The test.
    """

    def test(progress: Progress) -> bool:
        if progress.earlier_answer is None or progress.age < least_age:
            return False
        now = np.linalg.norm(progress.answer - progress.last_answer)
        return bool(now < np.linalg.norm(progress.last_answer - progress.earlier_answer))

    return test


def value_restart(value: Callable[[Vector], float]) -> Callable[[Progress], bool]:
    """The function test, f(x_k) > f(x_{k-1}), of O'Donoghue and Candes, 2015, section 3.2.

    Args:
        value: The function f.

    Returns:
        The test.
    """
    return lambda progress: value(progress.answer) > value(progress.last_answer)


def query_value_restart(value: Callable[[Vector], float]) -> Callable[[Progress], bool]:
    """The function test at query points, f(y_{k-1}) > f(y_{k-2}), for optimizers that see the function there alone.

    Args:
        value: The function f.

    Returns:
        The test; false in the first update after a restart.
    """
    return lambda progress: progress.last_query is not None and value(progress.query) > value(progress.last_query)


def restarted_fista(
    gradient: Gradient, start: ArrayLike, step_size: float, steps: int, test: Callable[[Progress], bool]
) -> Trajectory:
    """FISTA that starts again from x_k, with y_k = x_k and t = 1, whenever the test holds after x_k.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        step_size: s, at most 1/L.
        steps: N.
        test: One of the tests above.

    Returns:
        y_k as queries, x_k as answers; both are x_k where a restart took place.

    Source:
        B. O'Donoghue and E. Candes, "Adaptive restart for accelerated gradient schemes", 2015, section 3.2.
    """
    momenta = fista_momenta(steps)
    x = y = np.asarray(start, np.float64)
    last_query = earlier = None
    age = 0
    queries, answers = [y], [x]
    for _ in range(steps):
        new = y - step_size * gradient(y)
        if test(Progress(age + 1, y, last_query, new, x, earlier)):
            last_query, earlier, age = None, None, 0
            y = new
        else:
            age += 1
            last_query, earlier = y, x
            y = new + momenta[age] * (new - x)
        x = new
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))
