"""Pretraining and fine-tuning: a character model on two texts, a classifier on two sets of images, data in real time.

text: a transformer of two blocks goes once through the source of Python's standard library (Tiny Shakespeare with
--data); every batch is predicted before it is trained on. Then it is fine-tuned on the topics of Python's documentation
(Pride and Prejudice): all layers, the lower ones frozen or slow, from scratch; momentum is reset, kept or rescaled.
images: a convolutional network is pretrained on the digits 0 to 4 (MNIST) and fine-tuned on a few of 5 to 9
(Fashion-MNIST). arrival: samples come at a set rate, below and above what the updates can take. rate: a learning rate
that follows the size of the gradient, against a fixed one, on a stream that changes from the first text to the second.

A run that was killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from experiments.output import Options, Run

if TYPE_CHECKING:
    from experiments.finetune_images import ImageSets
    from experiments.finetune_text import Texts

Part = Literal["text", "images", "arrival", "rate"]
Text = Literal["python_source", "python_topics", "tinyshakespeare", "pride_and_prejudice"]
MOST_SEEDS = 1000  # the ones above are for tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to run, and how much of it."""

    parts: tuple[Part, ...] = get_args(Part)
    """Which parts run; all by default."""
    data: Path | None = None
    """Folder of data sets: text/*.txt, mnist/*.gz, fashion_mnist/*.gz. With it these are the default."""
    first_text: Text | None = None
    """Text of pretraining. Default: python_source, or tinyshakespeare with --data."""
    second_text: Text | None = None
    """Text of fine-tuning. Default: python_topics, or pride_and_prejudice with --data."""
    seeds: int = 3
    """Number of seeds: 0, 1, ... Each draws its initial weights and its part of the texts and images."""
    characters: int = 400_000
    """Characters of pretraining, at most those of the text."""
    tuned_characters: int = 130_000
    """Characters of fine-tuning, at most 90 % of those of the text."""
    trials: int = 3
    """Rates that are tried for every kind of fine-tuning, on a seed that is not reported: 1 to 3."""
    image_seeds: int = 5
    """Number of seeds of the images."""
    image_epochs: int = 10
    """Passes through the images, in pretraining and in fine-tuning."""
    image_rows: int | None = None
    """Images of each set for training, with --data; the first ones. All by default."""
    image_examples: tuple[int, ...] | None = None
    """Images of fine-tuning. Default: 20 50 150 400, or 100 1000 5000 with --data."""
    arrival_seconds: float = 4.0
    """Seconds of each rate of arrival."""
    shift_characters: int = 80_000
    """Characters of each of the two texts in the part rate."""
    checkpoint_every: int = 500
    """Updates from one checkpoint of the first text to the next."""
    work: Path | None = None
    """Folder for what a run has done so far. Default: .pretrain_finetune-work beside the results."""
    quick: bool = False
    """A check in less than a minute: a tenth of the text, 2 seeds, no tuning, 3 epochs, half a second of arrivals."""
    threads: int | None = None
    """Number of cores to use; all by default."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        if not self.parts:
            raise ValueError("--parts needs at least one name.")
        for field in ("seeds", "characters", "tuned_characters", "trials", "image_seeds", "image_epochs", "image_rows",
                      "shift_characters", "checkpoint_every", "threads"):  # fmt: skip
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"--{field.replace('_', '-')} must be at least 1, got {value}.")
        if max(self.seeds, self.image_seeds) > MOST_SEEDS:
            raise ValueError(f"--seeds and --image-seeds must be at most {MOST_SEEDS}.")
        if self.trials > 3:
            raise ValueError(f"--trials must be at most 3, got {self.trials}.")
        if not self.arrival_seconds > 0:
            raise ValueError(f"--arrival-seconds must be more than 0, got {self.arrival_seconds}.")
        if self.image_examples is not None and (not self.image_examples or min(self.image_examples) < 1):
            raise ValueError("--image-examples needs numbers of at least 1.")

    def completed(self) -> Config:
        """Returns the options with defaults that depend on others filled in, and reduced for --quick."""
        given = self.data is not None
        examples = (100, 1000, 5000) if given else (20, 50, 150, 400)
        config = dataclasses.replace(
            self,
            first_text=self.first_text or ("tinyshakespeare" if given else "python_source"),
            second_text=self.second_text or ("pride_and_prejudice" if given else "python_topics"),
            image_examples=self.image_examples or (examples[1:2] if self.quick else examples),
        )
        if not self.quick:
            return config
        return dataclasses.replace(
            config,
            seeds=min(self.seeds, 2),
            characters=min(self.characters, 40_000),
            tuned_characters=min(self.tuned_characters, 26_000),
            trials=1,
            image_seeds=min(self.image_seeds, 2),
            image_epochs=min(self.image_epochs, 3),
            image_rows=min(self.image_rows or 1280, 1280),
            arrival_seconds=min(self.arrival_seconds, 0.5),
            shift_characters=min(self.shift_characters, 13_000),
        )

    def workplace(self) -> Path:
        """The folder for what has been done so far."""
        if self.work is not None:
            return self.work
        return (self.out or Path("results/pretrain_finetune")).absolute().parent / ".pretrain_finetune-work"


def main(config: Config, run: Run) -> dict[str, Any]:
    """Does the parts, or what an earlier run has left to do of them, prints the tables and draws the figures."""
    from experiments import finetune_figures, finetune_report
    from experiments.finetune_place import Workplace

    config = config.completed()
    parts: dict[str, Any] = {}
    with Workplace(config.workplace()) as work:
        texts = _texts(config) if {"text", "arrival", "rate"} & set(config.parts) else None
        with finetune_report.progress() as bar:
            for part in (name for name in get_args(Part) if name in config.parts):
                task = bar.add_task(part, total=None)
                parts[part] = _part(part, config, work, texts, functools.partial(bar.advance, task))
                bar.update(task, total=bar.tasks[task].completed)
                for row in parts[part]["rows"]:
                    run.log({"part": part, **row})
        finetune_report.show(parts)
        finetune_figures.learning(run.folder / "pretrain_finetune.png", parts)
        finetune_figures.stream(run.folder / "stream.png", parts)
        work.done()
    return {
        "seeds": list(range(max(config.seeds, config.image_seeds))),
        "ran": {field: getattr(config, field) for field in ("parts", "first_text", "second_text", *NUMBERS)},
        **parts,
        "findings": finetune_report.findings(parts),
    }


# Those that --quick and --data change; all of them change the numbers.
NUMBERS = ("seeds", "characters", "tuned_characters", "trials", "image_seeds", "image_epochs", "image_rows",
           "image_examples", "arrival_seconds", "shift_characters")  # fmt: skip


def _part(name: str, config: Config, work: Any, texts: Texts | None, tick: Any) -> dict[str, Any]:
    from experiments import finetune_arrival, finetune_images, finetune_shift, finetune_text

    seeds = range(config.seeds)
    definition: dict[str, Any] = {field: getattr(config, field) for field in NUMBERS} | _versions()
    if name == "images":
        from experiments import data

        sets = _image_sets(config)
        definition["data"] = [data.fingerprint(part) for part in (sets.first, sets.second, sets.second_test)]
        place = work.place(name, definition)
        part = finetune_images.ImagePart(
            sets, place, epochs=config.image_epochs, examples=config.image_examples or (), tick=tick
        )
        return {**part.run(range(config.image_seeds), finetune_text.RATES[: config.trials]), "found": place.found}
    assert texts is not None
    definition["data"] = texts.fingerprint
    place = work.place(name, definition)
    if name == "text":
        part = finetune_text.TextPart(
            texts,
            place,
            characters=config.characters,
            tuned_characters=config.tuned_characters,
            every=config.checkpoint_every,
            tick=tick,
        )
        found = part.run(seeds, finetune_text.RATES[: config.trials])
        found |= {"texts": (config.first_text, config.second_text)}
    elif name == "arrival":
        found = finetune_arrival.ArrivalPart(texts, place, seconds=config.arrival_seconds, seed=0, tick=tick).run()
    else:
        part = finetune_shift.ShiftPart(texts, place, characters=config.shift_characters, tick=tick)
        rates = finetune_shift.RATES if config.trials > 1 else finetune_shift.RATES[1:2]
        found = part.run(seeds, rates)
    return {**found, "found": place.found}


def _texts(config: Config) -> Texts:
    from experiments import data, finetune_text

    first, second = (data.load(name, config.data) for name in (str(config.first_text), str(config.second_text)))
    assert isinstance(first, str)
    assert isinstance(second, str)
    return finetune_text.encode(first, second)


def _image_sets(config: Config) -> ImageSets:
    from experiments import data, finetune_images

    if config.data is None:
        digits = data.load("digits")
        assert isinstance(digits, data.Images)
        return finetune_images.two_halves_of_digits(digits)
    mnist, fashion = data.load("mnist", config.data), data.load("fashion_mnist", config.data)
    assert isinstance(mnist, data.Split)
    assert isinstance(fashion, data.Split)
    return finetune_images.two_sets(("MNIST", "Fashion-MNIST"), mnist, fashion, config.image_rows)


def _versions() -> dict[str, Any]:
    """Versions and sources on which every number depends."""
    import hashlib
    import importlib.metadata

    sources = sorted(Path(__file__).parent.glob("finetune_*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    names = ("nagjax", "jax", "jaxlib", "optax", "flax", "numpy")
    return {"source": digest, **{name: importlib.metadata.version(name) for name in names}}
