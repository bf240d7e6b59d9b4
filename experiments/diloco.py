"""DiLoCo: workers that meet every H steps, by their number, H and the outer step, against data parallel.

A character model (an embedding, one hidden layer) learns the source of Python's standard library, or Tiny Shakespeare
with --data. M workers share a batch of 32: all numbers of workers, and data parallel, see the same characters in the
same step. Each worker makes H steps of AdamW on its part; then an outer step (averaging, heavy ball, Nesterov, Adam)
takes the mean of their displacements for a gradient. Every run has at least 200 outer steps, but for one part that
shows what happens with few. The inner rate is tuned for every M, H and outer setting, with equally many trials for
data parallel, on a seed and a part of the text that are not reported.

A run that was killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.output import Options, Run

if TYPE_CHECKING:
    from experiments.diloco_runs import Amount

TextName = Literal["python_source", "python_topics", "tinyshakespeare", "pride_and_prejudice"]
MOST_SEEDS = 1000  # the one above is for tuning
MOST_WORKERS = 32  # of which each has one window of the batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to run, and how much of it."""

    data: Path | None = None
    """Folder of data sets: text/*.txt. With it Tiny Shakespeare is the default."""
    text: TextName | None = None
    """The text. Default: python_source, or tinyshakespeare with --data."""
    workers: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers M of workers: powers of 2, at most 32."""
    periods: tuple[int, ...] = (1, 10, 30, 100)
    """Periods H, all at the same number of steps: enough for --outer-steps of the longest one."""
    long_period: int = 500
    """One more period: with few outer steps at the same number of steps, and with enough of them. 0 leaves it out."""
    long_workers: tuple[int, ...] = (1, 8)
    """Numbers of workers with the long period and enough outer steps: 100,000 steps each."""
    compared_period: int = 30
    """The period, one of --periods, with which all outer methods are compared for the most workers."""
    outer_steps: int = 200
    """Fewest outer steps of a run, but for those that are to have few."""
    seeds: int = 5
    """Number of seeds: 0, 1, ... Each draws its initial weights and its batches."""
    jobs: int = 2
    """Compiled programs that run at the same time."""
    work: Path | None = None
    """Folder for what a run has done so far. Default: .diloco-work beside the results."""
    quick: bool = False
    """A check in less than a minute: 1 and 4 workers, H = 1 and 20, 50 outer steps, 2 seeds."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        for field in ("workers", "periods"):
            if not getattr(self, field):
                raise ValueError(f"--{field} needs at least one number.")
        for field in ("periods", "outer_steps", "seeds", "jobs", "compared_period"):
            value = getattr(self, field)
            least = min(value) if isinstance(value, tuple) else value
            if least < 1:
                raise ValueError(f"--{field.replace('_', '-')} must be at least 1, got {least}.")
        for field in ("workers", "long_workers"):
            for number in getattr(self, field):
                if number < 1 or number & (number - 1) or number > MOST_WORKERS:
                    raise ValueError(
                        f"--{field.replace('_', '-')} must be powers of 2 and at most {MOST_WORKERS}, got {number}."
                    )
        if self.long_period and self.long_period <= max(self.periods):
            raise ValueError(f"--long-period must be 0 or above all --periods, got {self.long_period}.")
        if self.seeds > MOST_SEEDS:
            raise ValueError(f"--seeds must be at most {MOST_SEEDS}, got {self.seeds}.")
        if not self.quick and self.compared_period not in self.periods:
            raise ValueError(f"--compared-period must be one of --periods, got {self.compared_period}.")

    def completed(self) -> Config:
        """Returns the options with defaults that depend on others filled in, and reduced for --quick."""
        config = dataclasses.replace(
            self, text=self.text or ("tinyshakespeare" if self.data is not None else "python_source")
        )
        if not self.quick:
            return config
        return dataclasses.replace(
            config,
            workers=(1, 4),
            periods=(1, 20),
            long_period=0,
            compared_period=20,
            outer_steps=min(self.outer_steps, 50),
            seeds=min(self.seeds, 2),
        )

    def amount(self) -> Amount:
        """What these options ask for."""
        from experiments.diloco_runs import Amount

        fields = (field.name for field in dataclasses.fields(Amount))
        return Amount(**{field: getattr(self, field) for field in fields})

    def workplace(self) -> Path:
        """The folder for what has been done so far."""
        if self.work is not None:
            return self.work
        return (self.out or Path("results/diloco")).absolute().parent / ".diloco-work"


def main(config: Config, run: Run) -> dict[str, Any]:
    """Makes all runs, or what an earlier run has left to do of them, prints the tables and draws the figure."""
    from experiments import data, diloco_figures, diloco_report, diloco_runs, diloco_training
    from experiments.finetune_place import Place
    from experiments.output import UsageError

    config = config.completed()
    found = data.load(str(config.text), config.data)
    assert isinstance(found, str)
    text, amount = diloco_training.encode(found), config.amount()
    definition = {"text": data.fingerprint(found), "seeds": config.seeds, **_versions()}
    place = Place(config.workplace(), "runs", definition)
    tasks = amount.tasks()
    try:
        with diloco_report.progress() as bar:
            task = bar.add_task("runs", total=sum(task.pieces for task in tasks))
            rows = diloco_runs.run(tasks, text, config.seeds, place, config.jobs, lambda: bar.advance(task))
    except OSError as error:
        raise UsageError(
            f"diloco: --work {config.workplace()} cannot be used ({error.strerror}); choose another folder."
        ) from None
    for row in rows:
        run.log(row)
    study = diloco_report.Study(rows, amount, diloco_training.size(text.characters), str(config.text))
    study.show()
    diloco_report.write_csv(run.folder / "diloco.csv", study)
    diloco_figures.draw(run.folder / "diloco.png", study)
    _remove(place)
    return {
        "seeds": list(range(config.seeds)),
        "ran": {**dataclasses.asdict(amount), "text": config.text},
        "parameters": study.parameters,
        "rows": rows,
        "found": place.found,
        "findings": study.findings(),
    }


def _remove(place: Any) -> None:
    """Removes what this run kept, and its folder if nothing else is in it."""
    import shutil

    shutil.rmtree(place.folder, ignore_errors=True)
    parent = place.folder.parent
    if parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()


def _versions() -> dict[str, Any]:
    """Versions and sources on which every number depends."""
    import hashlib
    import importlib.metadata

    sources = [Path(__file__).with_name(f"diloco_{name}.py") for name in ("training", "methods")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    names = ("nagjax", "jax", "jaxlib", "optax", "numpy")
    return {"source": digest, **{name: importlib.metadata.version(name) for name in names}}
