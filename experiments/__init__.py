"""Experiments: one module a question, run by name from the command line.

    python -m experiments                      lists them
    python -m experiments NAME --help          the options of one
    python -m experiments NAME                 runs it; results go to results/NAME/

To add an experiment, add a module to this folder that defines three things:

1. a docstring, whose first line is the line that the listing shows;
2. ``Config``, a frozen dataclass that extends `experiments.output.Options` (which brings ``--out`` and
   ``--overwrite``). A field is an option, and the string under the field is its help. Values that make no sense are
   refused in ``__post_init__`` with a ``ValueError``;
3. ``main(config, run)``, which does the work and returns a dictionary for ``results.json``. Its key ``"seeds"`` lists
   the seeds used. `experiments.output.Run` gives it ``run.folder`` for figures, ``run.log({...})`` for one line of
   ``metrics.jsonl`` and ``run.write_json(name, value)``.

A module without ``Config`` and ``main`` is a helper and is not listed. Import JAX and other heavy packages inside
``main`` (or in a helper module that ``main`` imports), so that ``--help`` and refusals are instant and ``--threads``
acts before JAX starts. Everything is written into a temporary folder beside the target, which takes the target's place
only when ``main`` has returned: an interrupted or failed run changes nothing.
"""
