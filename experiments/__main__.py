"""The command line: ``python -m experiments NAME [options]``."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from experiments import catalogue, limits
from experiments.output import UsageError, recorded

EXTRA = {"tyro", "rich", "matplotlib", "sklearn"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 (a failure), 2 (a request refused), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(catalogue.listing())
        return 0
    name = arguments[0].replace("-", "_")
    if name not in catalogue.summaries():
        print(catalogue.unknown(arguments[0]), file=sys.stderr)
        return 2
    try:
        return _run(name, arguments)
    except UsageError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(
            f"experiments: {name} needs the package {error.name!r}; pip install 'nagjax[experiments]' brings it.",
            file=sys.stderr,
        )
        return 2
    except MemoryError:
        print("experiments: out of memory; earlier results are as they were.", file=sys.stderr)
        return limits.OUT_OF_MEMORY
    except KeyboardInterrupt:
        print(f"experiments: {name} interrupted; earlier results are as they were.", file=sys.stderr)
        return 130


def _run(name: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"experiments.{name}")
    config = _parse(name, module, arguments[1:])
    megabytes = getattr(config, "memory_limit", None)
    if megabytes is not None and not limits.limited_child():
        return limits.run_limited(name, config, megabytes, arguments)
    with recorded(name, config) as (run, results):
        if megabytes is not None:
            limits.set_memory_limit(megabytes)
        if getattr(config, "threads", None) is not None:
            limits.set_threads(config.threads)
        results.update(module.main(config, run))
    print(f"Results: {config.out or f'results/{name}'}")
    return 0


def _parse(name: str, module: Any, arguments: list[str]) -> Any:
    import tyro

    try:
        return tyro.cli(module.Config, prog=f"python -m experiments {name}", description=module.__doc__, args=arguments)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
