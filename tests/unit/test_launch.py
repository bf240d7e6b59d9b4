"""The launcher of test programs: environments, exit codes, signals, times, and nothing left behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments import launch


def run(code, *options, processes=2):
    """The launcher's exit code and output for a Python program."""
    command = [sys.executable, "-m", "experiments.launch", "-n", str(processes), *options, "--", sys.executable, "-c"]
    result = subprocess.run([*command, code], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    return result.returncode, result.stdout.splitlines()


def test_processes_find_what_initialize_reads_and_their_lines_carry_their_numbers():
    names = "JAX_PROCESS_ID JAX_NUM_PROCESSES JAX_NUM_CPU_DEVICES JAX_PLATFORMS JAX_COORDINATOR_ADDRESS"
    code, lines = run(f"import os; print(*map(os.environ.get, {names.split()}))", "--devices", "3", processes=2)
    assert code == 0
    *said, last = lines
    matches = [re.fullmatch(r"\[(\d)\] (\d) 2 3 cpu (127\.0\.0\.1:\d+)", line) for line in sorted(said)]
    assert [match[1] == match[2] for match in matches] == [True, True]
    assert [match[1] for match in matches] == ["0", "1"]
    assert matches[0][3] == matches[1][3]
    assert re.fullmatch(r"launch: 2 processes ended well after [\d.]+ s", last)


def test_a_device_count_of_the_callers_xla_flags_does_not_reach_the_processes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_other=1")
    assert launch.environment(0, 1, 1, 2)["XLA_FLAGS"] == "--xla_other=1"


FIRST = "import os, sys, time; first = os.environ['JAX_PROCESS_ID'] == '1'\n"


def test_the_exit_code_is_that_of_the_first_failure():
    code, lines = run(FIRST + "time.sleep(0 if first else 1); sys.exit(7 if first else 3)")
    assert code == 7
    assert re.fullmatch(
        r"launch: process 1 ended first, with exit code 7 after .* s; process 0 .* 3 after .* s", lines[-1]
    )


def test_a_signal_counts_as_128_and_its_number_and_the_others_get_the_grace():
    began = time.monotonic()
    code, lines = run(FIRST + "os.kill(os.getpid(), 9) if first else time.sleep(60)", "--grace", "0.5")
    assert code == 128 + signal.SIGKILL
    assert re.fullmatch(r"launch: process 1 ended first, by SIGKILL after .* s; process 0 was ended", lines[-1])
    assert time.monotonic() - began < 20


def test_processes_out_of_time_are_ended_with_the_code_of_timeout():
    code, lines = run("import time; time.sleep(60)", "--timeout", "1")
    assert code == launch.OUT_OF_TIME == 124
    assert lines[-1] == "launch: processes 0, 1 did not end within 1 s"


def alive(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_children_of_ended_processes_and_processes_that_ignore_sigterm_are_ended(monkeypatch):
    monkeypatch.setattr(launch, "_ASKED", 0.3)
    child = "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
    child += "print(subprocess.Popen(sleep).pid, flush=True)\n"
    stubborn = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\n"
    with launch.Group([sys.executable, "-c", child + stubborn + "time.sleep(60)"], 1, 1, shown=False) as group:
        assert group.wait(2.0, 1.0) == launch.OUT_OF_TIME
    found = [int(line) for line in group.lines[0]]
    assert len(found) == 2
    deadline = time.monotonic() + 5
    while any(map(alive, found)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, found))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_handed_on(number):
    code = "import signal, sys, time\n"
    code += (
        "for n in (2, 15): signal.signal(n, lambda n, _: sys.exit(40 + n))\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-m", "experiments.launch", "-n", "2", "--", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert {process.stdout.readline().strip() for _ in range(2)} == {"[0] ready", "[1] ready"}
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 40 + number
    assert f"with exit code {40 + number}" in rest


def test_bad_requests_are_refused():
    for arguments in (["-n", "0", "--", "true"], ["-n", "1", "--", "no-such-program"], ["-n", "1"]):
        result = subprocess.run(
            [sys.executable, "-m", "experiments.launch", *arguments], capture_output=True, text=True
        )
        assert result.returncode == 2
        assert "experiments.launch: error:" in result.stderr
