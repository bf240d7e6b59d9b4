"""A process of `scaling`: answers commands of its parent, or is one of several that `experiments.launch` starts.

Alone, it reads one JSON command a line and answers each by one line: "train" saves the parameters after some steps,
"inspect" reads the program, "time" runs steps; each names the layout and the examples of a batch. As one of several it
does the same for a list of commands in a file, and process 0 writes the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answerer() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns the function that carries out a command; programs are compiled once."""
    import jax
    import numpy as np

    from experiments.scaling_training import Program

    programs: dict[tuple[str, int], Program] = {}

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        key = command["layout"], command["examples"]
        if key not in programs:
            programs[key] = Program(*key)
        program = programs[key]
        if command["do"] == "train":
            arrays = program.train(command["steps"])
            if jax.process_index() == 0:
                np.savez(command["path"], *arrays)
            return {"processes": jax.process_count(), "devices": jax.device_count()}
        if command["do"] == "inspect":
            return program.inspect()
        return {"seconds": program.seconds(command["steps"])}

    return answer


def serve() -> None:
    """Answers the commands on standard input; whatever libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        answer = answerer()
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


def run_list(path: Path) -> None:
    """Carries out the commands of a file in all processes; process 0 puts the answers beside it."""
    from nagjax.training import distributed

    distributed.initialize()
    answer = answerer()
    answers = [answer(command) for command in json.loads(path.read_text())]
    if distributed.is_main():
        path.with_suffix(".answers").write_text(json.dumps(answers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=Path, help="a file of commands, for each of several processes")
    commands = parser.parse_args().commands
    if commands is None:
        serve()
    else:
        run_list(commands)
