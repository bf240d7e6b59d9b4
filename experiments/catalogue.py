"""Finds the experiments in this folder by reading their source, without importing them."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path


def summaries(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Returns name -> first line of the docstring, for every module that defines ``Config`` and ``main``."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "Config" in classes and "main" in functions and not path.name.startswith("_"):
            found[path.stem] = (ast.get_docstring(tree) or "(no description)").splitlines()[0]
    return found


def listing() -> str:
    """Returns the text that ``python -m experiments`` prints."""
    found = summaries()
    width = max((len(name) for name in found), default=0)
    lines = [f"  {name:<{width}}  {summary}" for name, summary in found.items()]
    return "\n".join(
        [
            "usage: python -m experiments NAME [options]",
            "",
            "Experiments:",
            *lines,
            "",
            "python -m experiments NAME --help shows the options of one. Results go to results/NAME/, or to --out.",
        ]
    )


def unknown(name: str) -> str:
    """Returns the message for a name that is no experiment, with the nearest names."""
    names = list(summaries())
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}."
    return f"experiments: unknown experiment {name!r}; {hint}"
