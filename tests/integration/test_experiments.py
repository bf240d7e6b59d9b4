"""The command line of the experiments, where results go, and what `nagd` and `digits` claim."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import catalogue, limits, output
from experiments.output import Options, UsageError, recorded

ROOT = Path(__file__).parents[2]


def run_inside(
    config: Options, text: str = "new", name: str = "trial", error: type[BaseException] | None = None
) -> None:
    with recorded(name, config) as (run, results):
        run.log({"loss": 1.0})
        (run.folder / "figure.png").write_text(text)
        if error is not None:
            raise error
        results.update(seeds=[0], answer=text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stub(monkeypatch):
    """An experiment that stands in for `nagd`, without JAX; its `main` is replaced by the test."""
    import dataclasses

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Options):
        steps: int = 3
        """Number of steps."""

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ValueError(f"--steps must be at least 1, got {self.steps}.")

    module = types.SimpleNamespace(__doc__="A stand-in.", Config=Config, main=lambda config, run: {"seeds": [0]})
    monkeypatch.setattr(command_line.importlib, "import_module", lambda name: module)
    return module


def test_the_listing_takes_one_line_from_each_module(capsys):
    assert command_line.main([]) == 0
    listed = capsys.readouterr().out
    for name in ("digits", "nagd"):
        first = (ROOT / "experiments" / f"{name}.py").read_text().splitlines()[0].strip('"')
        assert any(line.split(maxsplit=1) == [name, first] for line in listed.splitlines())
    assert "digits_training" not in listed


def test_the_listing_imports_no_heavy_package():
    code = (
        "import sys; from experiments.__main__ import main; main([]);"
        "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'matplotlib', 'tyro', 'sklearn')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_new_module_is_listed_and_a_helper_is_not(tmp_path):
    (tmp_path / "fresh.py").write_text('"""A fresh question.\n\nMore."""\nclass Config: ...\ndef main(): ...\n')
    (tmp_path / "helper.py").write_text('"""No experiment."""\ndef main(): ...\n')
    assert catalogue.summaries(tmp_path) == {"fresh": "A fresh question."}


@pytest.mark.parametrize(("typed", "meant"), [("digit", "digits"), ("nadg", "nagd")])
def test_an_unknown_name_suggests_the_nearest(typed, meant, capsys):
    assert command_line.main([typed]) == 2
    assert f"unknown experiment {typed!r}; did you mean {meant}" in capsys.readouterr().err


def test_help_shows_the_options_with_their_help(stub, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main(["nagd", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "A stand-in." in shown
    assert "--steps" in shown
    assert "Number of steps." in shown
    assert "--overwrite" in shown


def test_a_value_out_of_range_is_refused_before_any_work(stub, folder, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main(["nagd", "--steps", "0"])
    assert end.value.code == 2
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_missing_package_names_the_extra(stub, folder, capsys):
    def main(config, run):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    stub.main = main
    assert command_line.main(["nagd"]) == 2
    assert "pip install 'nagjax[experiments]'" in capsys.readouterr().err


def test_results_go_to_the_default_folder_with_what_identifies_the_run(folder):
    run_inside(Options())
    found = folder / "results" / "trial"
    assert sorted(path.name for path in found.iterdir()) == ["figure.png", "metrics.jsonl", "results.json"]
    record = json.loads((found / "results.json").read_text())
    assert record["experiment"] == "trial"
    assert record["seeds"] == [0]
    assert record["results"] == {"answer": "new"}
    assert record["wall_seconds"] >= 0
    assert {"python", "jax", "optax"} <= set(record["versions"])
    assert {"system", "device_kind"} <= set(record["platform"])
    assert str(folder) not in json.dumps(record)


def test_the_default_folder_is_replaced_as_a_whole(folder):
    run_inside(Options(), "old")
    run_inside(Options(), "new")
    assert (folder / "results" / "trial" / "figure.png").read_text() == "new"
    assert [path.name for path in (folder / "results").iterdir()] == ["trial"]


def test_an_explicit_folder_with_a_result_asks_for_overwrite(folder):
    config = Options(out=Path("here"))
    run_inside(config, "old")
    with pytest.raises(UsageError, match="--out here already holds a result; add --overwrite"):
        run_inside(config)
    assert (folder / "here" / "figure.png").read_text() == "old"
    run_inside(Options(out=Path("here"), overwrite=True))
    assert (folder / "here" / "figure.png").read_text() == "new"


@pytest.mark.parametrize("record", [None, "{}", "not JSON", '{"format": "other", "experiment": "trial", "files": []}'])
def test_a_folder_that_is_no_result_is_never_replaced(folder, record):
    (folder / "here").mkdir()
    (folder / "here" / "thesis.txt").write_text("years of work")
    if record is not None:
        (folder / "here" / "results.json").write_text(record)
    with pytest.raises(UsageError, match="never replaced"):
        run_inside(Options(out=Path("here"), overwrite=True))
    assert (folder / "here" / "thesis.txt").read_text() == "years of work"


def test_a_result_with_a_foreign_file_or_of_another_experiment_is_not_replaced(folder):
    config = Options(out=Path("here"), overwrite=True)
    run_inside(config)
    with pytest.raises(UsageError, match="results of trial, which is never replaced"):
        run_inside(config, name="other")
    (folder / "here" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        run_inside(config)
    assert (folder / "here" / "notes.txt").read_text() == "mine"


def test_a_link_is_not_replaced(folder):
    (folder / "real").mkdir()
    (folder / "here").symlink_to(folder / "real")
    with pytest.raises(UsageError, match="is a link"):
        run_inside(Options(out=Path("here"), overwrite=True))


@pytest.mark.parametrize("out", ["file/below", "file", "/dev/null/here"])
def test_an_unwritable_folder_is_refused_before_any_work(folder, out):
    (folder / "file").write_text("in the way")
    started = False
    with pytest.raises(UsageError, match=r"--out .*; choose a"), recorded("trial", Options(out=Path(out))):
        started = True
    assert not started
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_or_failed_run_leaves_the_old_results_and_nothing_else(folder, error):
    run_inside(Options(), "old")
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    with pytest.raises(error):
        run_inside(Options(), "half a figure", error=error)
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    assert (folder / "results" / "trial" / "figure.png").read_text() == "old"


def test_an_interrupted_first_run_leaves_no_folder(folder):
    with pytest.raises(KeyboardInterrupt), recorded("trial", Options(out=Path("a/b/c"))):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_ctrl_c_ends_with_one_line_and_130(stub, folder, capsys):
    def main(config, run):
        raise KeyboardInterrupt

    stub.main = main
    assert command_line.main(["nagd"]) == 130
    assert capsys.readouterr().err == "experiments: nagd interrupted; earlier results are as they were.\n"


def test_json_holds_null_for_what_is_not_finite():
    value = {"a": float("nan"), "b": np.float32(np.inf), "c": np.arange(2), "d": (1, True, None), "e": Path("x")}
    assert output.plain(value) == {"a": None, "b": None, "c": [0, 1], "d": [1, True, None], "e": "x"}


def test_threads_out_of_range_and_after_jax_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="before JAX starts"):
        limits.set_threads(1)
    monkeypatch.delitem(sys.modules, "jax")
    with pytest.raises(UsageError, match="--threads must be between 1 and"):
        limits.set_threads(10_000)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts memory on Linux")
def test_a_memory_limit_that_is_too_small_ends_in_a_message(folder):
    command = [sys.executable, "-m", "experiments", "digits", "--quick", "--memory-limit", "60", "--out", "here"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == limits.OUT_OF_MEMORY
    assert done.stderr.startswith("experiments: digits did not fit into --memory-limit 60 MB; raise the limit")
    assert done.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_sigint_to_a_running_experiment_leaves_nothing(folder):
    command = [sys.executable, "-m", "experiments", "digits"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("results/.digits.partial-*/metrics.jsonl")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "experiments: digits interrupted; earlier results are as they were.\n"
    assert list(folder.iterdir()) == []


def test_nagd_lies_on_its_closed_form_and_refuses_unstable_rates(folder, capsys):
    from experiments import nagd

    assert command_line.main(["nagd"]) == 0
    results = json.loads((folder / "results" / "nagd" / "results.json").read_text())["results"]
    # Weights are of order one; 4,000 float64 steps accumulate far less than this.
    assert results["largest_difference"] < 1e-12
    runs = {(run["method"], run["rule"]): run for run in results["runs"]}
    assert [run["updates"] for run in results["runs"]][:2] == [10, 100]
    stopped = [runs[method, "|gradient| <= 1e-08"] for method in ("gradient descent", "Nesterov")]
    assert all(run["gradient_norm"] <= 1e-8 for run in stopped)
    assert 4 * stopped[1]["updates"] < stopped[0]["updates"]
    diverging, converging = results["tutorial_update"]
    assert min(diverging["factors"]) > 1
    assert max(converging["factors"]) < 1
    np.testing.assert_allclose(converging["last"], converging["fixed_point"], rtol=1e-2)
    assert np.linalg.norm(np.subtract(converging["fixed_point"], converging["minimizer"])) > 1
    assert {path.name for path in (folder / "results" / "nagd").glob("*.png")} == {
        "trajectories.png", "error.png", "not_nesterov.png",
    }  # fmt: skip
    assert "Largest difference" in capsys.readouterr().out
    assert command_line.main(["nagd", "--alpha", "0.5"]) == 2
    assert "--alpha must be below" in capsys.readouterr().err
    assert nagd.Config().beta == 0.97


@pytest.mark.usefixtures("single_precision", "standard_promotion")
class TestDigits:
    def test_the_names_of_the_command_line_are_those_of_the_rivals(self):
        from typing import get_args

        from experiments import digits, digits_rivals

        assert get_args(digits.Name) == tuple(digits_rivals.RIVALS) == tuple(digits_rivals.TUNED)

    def test_every_rival_has_the_same_number_of_trials_and_its_tuned_values_are_among_them(self):
        from experiments import digits_rivals

        for name, rival in digits_rivals.RIVALS.items():
            trials = rival.trials()
            assert len(set(trials)) == digits_rivals.TRIALS
            assert {min(trials)[0], max(trials)[0]} == set(digits_rivals.RATES)
            assert digits_rivals.TUNED[name] in trials

    def test_the_splits_are_stratified_and_the_test_set_is_the_same_for_all_seeds(self):
        from experiments import digits_training

        first, second = digits_training.load(0), digits_training.load(1)
        assert [len(part[1]) for part in first] == [1293, 144, 360]
        np.testing.assert_array_equal(first.test[0], second.test[0])
        assert not np.array_equal(first.validation[0], second.validation[0])
        for _, labels in first:
            counts = np.bincount(labels, minlength=10)
            assert counts.max() - counts.min() <= 0.25 * counts.mean()

    def test_a_program_is_traced_once_and_repeats_its_bits(self):
        from experiments import digits_rivals, digits_training

        rival = digits_rivals.RIVALS["nesterov"]
        data = [digits_training.load(seed) for seed in range(2)]
        program = digits_training.Program(rival.build, digits_training.Plan(3, 32, 40), rival.accelerated)
        first = program.run(data[0], 0, 0.1, 0.9)
        program.run(data[1], 1, 0.2, 0.8)
        again = program.run(data[0], 0, 0.1, 0.9)
        assert program.traces == 1
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
        assert program.parameters == 64 * 128 + 128 + 128 * 10 + 10
        assert 0 <= program.state_bytes - 4 * program.parameters <= 16

    def test_patience_stops_a_run_that_does_not_improve(self):
        from experiments import digits_rivals, digits_training

        rival = digits_rivals.RIVALS["sgd"]
        program = digits_training.Program(rival.build, digits_training.Plan(6, 32, 40), rival.accelerated)
        # The first epoch always improves on nothing; a rate of zero never does again.
        still = program.run(digits_training.load(0), 0, 0.0, 0.0, patience=2)
        assert still.ran.tolist() == [True, True, True, False, False, False]
        np.testing.assert_array_equal(still.validation_loss[2:], still.validation_loss[2])
        assert program.run(digits_training.load(0), 0, 0.1, 0.0).ran.all()

    def test_quick_run_writes_table_figures_and_records(self, folder, capsys):
        assert command_line.main(["digits", "--quick", "--optimizers", "nesterov", "adam"]) == 0
        shown = capsys.readouterr().out
        assert "Nesterov, constant" in shown
        assert "epochs" in shown
        found = folder / "results" / "digits"
        for figure in ("learning_curves.png", "momentum_storage.png"):
            assert (found / figure).read_bytes().startswith(b"\x89PNG")
        record = json.loads((found / "results.json").read_text())
        assert record["seeds"] == [0, 1]
        entries = {entry["name"]: entry for entry in record["results"]["optimizers"]}
        assert set(entries) == {"nesterov", "adam"}
        for entry in [*entries.values(), *record["results"]["storages"]]:
            assert min(entry["test_accuracy"]) > 0.9
            assert entry["traces"] == 1
        sizes = [entry["state_bytes"] for entry in record["results"]["storages"]]
        assert sizes == sorted(sizes, reverse=True)
        lines = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == (2 + 3) * 2 * 5
