"""`fit` over two processes: the run of one, and a signal to one process that ends all after the same step."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.launch import Group

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(folder, processes, devices, *options):
    folder.mkdir(exist_ok=True)
    program = ROOT / "tests" / "integration" / "process_fit.py"
    with Group([sys.executable, str(program), str(folder), *options], processes, devices, shown=False) as group:
        return group.wait(120, 40), group.lines


def final(folder):
    return np.load(folder / "final.npz")["w"]


@pytest.mark.parametrize("data", [(), ("--stream",)], ids=["on the device", "a stream"])
def test_a_signal_to_one_process_ends_all_after_the_same_step_and_the_run_goes_on(data, tmp_path):
    whole, cut, alone = (tmp_path / name for name in ("whole", "cut", "alone"))
    for folder, processes, devices in ((whole, 2, 1), (alone, 1, 2)):
        code, lines = run(folder, processes, devices, *data)
        assert code == 0, lines
    np.testing.assert_allclose(final(whole), final(alone), atol=1e-6)

    code, lines = run(cut, 2, 1, *data, "--signal", "1")
    assert code == 128 + 15, lines
    (saved,) = (path.name for path in (cut / "checkpoints").glob("*-step-*"))
    assert 30 <= int(saved.rsplit("-", 1)[1]) <= 39  # by the record after the next one
    assert not (cut / "final.npz").exists()

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(cut, elsewhere)
    code, lines = run(elsewhere, 1, 1, *data)
    assert code == 0, lines
    np.testing.assert_allclose(final(elsewhere), final(whole), atol=1e-6)

    code, lines = run(cut, 2, 1, *data)
    assert code == 0, lines
    np.testing.assert_array_equal(final(cut), final(whole))
    kinds = [json.loads(line)["kind"] for line in (cut / "run.jsonl").read_text().splitlines()]
    assert kinds.count("start") == kinds.count("resume") == kinds.count("end") == 1
