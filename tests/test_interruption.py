"""Runs that are killed, stopped and restarted, as a user or a cluster does it."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bertorch.cli import INTERRUPTED
from bertorch.training.metrics_file import METRICS, read_metrics
from tests.conftest import MATCHING, NER, PARAPHRASES, REVIEWS, ROOT, SENTENCES, STS, Script, launcher, run_script
from tests.log_lines import command

# `make kills` asks for 20; each costs a start of the interpreter.
KILLS = int(os.environ.get("BERTORCH_TEST_KILLS", "3"))


def arguments(saved_dir: Path, *extra: object, **settings: object) -> list[object]:
    options = {"label_file": REVIEWS / "labels.txt", "max_seq_length": 32, "epochs": 2, "save_steps": 4}
    options |= {"save_interval": 0, "logging_steps": 1}
    return [
        *command("run_classifier.py", REVIEWS / "train.txt", REVIEWS / "dev.txt", saved_dir, **(options | settings)),
        *extra,
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = read_metrics(folder / METRICS)
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def assert_same_weights(one: Path, other: Path) -> None:
    expected = weights(one)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(other).items())


EPOCHS = max(2, KILLS // 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    run_script(*arguments(folder, epochs=EPOCHS))
    return folder


def kill_and_go_on(folder: Path, again: list[object], kills: int) -> None:
    """By SIGKILL within two seconds of the first step, from the middle one on of the first checkpoint.

    Every step is followed by an evaluation and, unless it falls due too early, a save.
    """
    moments = random.Random(kills)
    logs = []
    for number in range(kills):
        process = Script(*again)
        process.wait_for("global step: ")
        while number >= kills // 2 and not any(folder.glob("checkpoint-*")):
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        logs.append(process.finish(check=-signal.SIGKILL).stderr)
    logs.append(run_script(*again).stderr)
    assert sum("goes on after step" in log for log in logs) >= kills // 2


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0, 0.5])
def test_killed_at_random_moments_it_ends_with_the_same_weights(interval, whole, tmp_path):
    """Also where training goes on while a save is written, and some that are due are left to the next time."""
    again = arguments(tmp_path, "--resume", epochs=EPOCHS, save_steps=1, save_interval=interval)
    kill_and_go_on(tmp_path, again, KILLS)
    assert_same_weights(whole, tmp_path)
    assert losses(whole) == losses(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "train", "dev", "settings"),
    [
        ("run_sentencebert.py", MATCHING / "train.txt", MATCHING / "dev.txt", {"pooling_mode": "mean"}),
        ("run_simcse.py", SENTENCES, STS, {"micro_batch_size": 8, "epochs": 2}),
        ("run_batchneg.py", PARAPHRASES, STS, {"output_emb_size": 16, "epochs": 2}),
        ("run_ner.py", NER / "train.json", NER / "dev.json", {"label_file": NER / "labels.txt", "use_crf": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_script_outlives_killed_at_random_moments(script, train, dev, settings, tmp_path):
    (tmp_path / "some").write_text("".join(train.read_text().splitlines(keepends=True)[:160]))
    (tmp_path / "dev").write_text("".join(dev.read_text().splitlines(keepends=True)[:40]))
    train, dev = tmp_path / "some", tmp_path / "dev"
    settings = {"max_seq_length": 24, "epochs": 1, "logging_steps": 1} | settings
    run_script(*command(script, train, dev, tmp_path / "whole", **settings))
    again = {"resume": True, "save_steps": 1} | settings
    kill_and_go_on(tmp_path / "killed", command(script, train, dev, tmp_path / "killed", **again), KILLS // 3)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stopped_run_tells_the_command_to_go_on(number, whole, tmp_path):
    process = Script(*arguments(tmp_path, epochs=EPOCHS))
    process.wait_for("global step: 5,")
    process.send_signal(number)
    rest = process.finish(check=INTERRUPTED).stderr
    assert "Traceback" not in rest
    step = int(re.search(r"stopped after step (\d+), with a checkpoint in", rest)[1])
    assert 5 <= step < 15
    assert (tmp_path / f"checkpoint-{step}").is_dir()
    command_line = re.search(r"go on with: python (run_classifier.py .* --resume)\n", rest)[1]
    done = run_script(*shlex.split(command_line))
    assert f"goes on after step {step}" in done.stderr
    assert f"global step: {step}," not in done.stderr
    assert_same_weights(whole, tmp_path)


@pytest.mark.slow
def test_the_second_signal_ends_it_at_once(tmp_path):
    process = Script(*arguments(tmp_path, logging_steps=1))
    process.wait_for("global step: 1,")
    process.send_signal(signal.SIGSTOP)  # so that both come within one step
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.wait_for("stops after this step")
    process.send_signal(signal.SIGTERM)
    process.finish(check=-signal.SIGTERM)


def ranks_of(group: int) -> dict[int, int]:
    """The processes of a launcher's group by their rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) != group and _parent(entry) == group:
                environment = dict(
                    item.split("=", 1) for item in (entry / "environ").read_text().split("\0") if "=" in item
                )
                found[int(environment["RANK"])] = int(entry.name)
        except (OSError, KeyError):
            continue
    return found


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_script(*arguments(folder), launcher=launcher())
    return folder


@pytest.mark.slow
def test_a_killed_rank_is_restarted_by_torchrun_without_help(whole_of_two, tmp_path):
    process = Script(*arguments(tmp_path, "--resume"), launcher=(*launcher(), "--max-restarts=2"))
    process.wait_for("global step: 9,")
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    rest = process.finish().stderr
    assert "goes on after step 8" in rest
    assert_same_weights(whole_of_two, tmp_path)


RESTARTED = """
import os, sys, time
import torch
from bertorch import distributed
rank, restarts = os.environ["RANK"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if restarts and rank == "0":
    time.sleep(3)  # the other process must not take the address that it had before the restart
with distributed.session():
    total = distributed.all_reduce_sum(torch.ones(1))
    if not restarts:
        sys.exit(1)
    sys.stderr.write(f"{rank}: {int(total)} processes\\n")
"""


@pytest.mark.slow
def test_processes_find_each_other_after_a_restart_whichever_is_first(tmp_path):
    """With --master_port, torchrun keeps the store in which they leave their addresses."""
    script = tmp_path / "script.py"
    script.write_text(RESTARTED)
    result = Script(script, launcher=(*launcher(), "--max-restarts=1")).finish(seconds=90)
    assert "0: 2 processes" in result.stderr
    assert "1: 2 processes" in result.stderr


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_run_down_and_leaves_no_process(tmp_path):
    process = Script(*arguments(tmp_path), launcher=launcher())
    process.wait_for("global step: 3,")
    ranks = ranks_of(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    rest = process.finish(check=1, seconds=60).stderr
    assert "Signal 9 (SIGKILL) received by PID" in rest
    assert not any(Path(f"/proc/{number}").exists() for number in ranks.values())


@pytest.mark.slow
def test_a_launcher_that_is_stopped_lets_both_processes_save(whole_of_two, tmp_path):
    """Also where the processes get the signal themselves, as of a whole job, and the launcher passes its own on."""
    process = Script(*arguments(tmp_path), launcher=launcher())
    process.wait_for("global step: 5,")
    for number in (process.pid, *ranks_of(process.pid).values()):
        os.kill(number, signal.SIGTERM)
    rest = process.finish(check=1, seconds=60).stderr
    assert "go on with the same launcher and: run_classifier.py" in rest
    done = run_script(*arguments(tmp_path, "--resume"), launcher=launcher())
    assert "goes on after step" in done.stderr
    assert_same_weights(whole_of_two, tmp_path)


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_last_save(tmp_path):
    """By a limit on the size of a file that the weights of the second save exceed."""
    run_script(*arguments(tmp_path, epochs=1))
    limited = tmp_path / "limited.py"
    limited.write_text(LIMITED)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    done = run_script(limited, *arguments(tmp_path, "--overwrite", epochs=1), check=2)
    assert f"--saved_dir {tmp_path}: expected a folder with room to write to, got: " in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_weights_that_are_not_finite_stop_the_run_and_keeps_the_last_save(tmp_path):
    done = run_script(
        *arguments(tmp_path, learning_rate=1e30, warmup_proportion=1, save_steps=1, logging_steps=4), check=2
    )
    assert re.search(r"step 2 \(epoch 1, batch 2\), expected finite weights", done.stderr)
    assert "Traceback" not in done.stderr
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_weights(whole, tmp_path):
    run_script(*arguments(tmp_path, "--deterministic", epochs=EPOCHS))
    assert_same_weights(whole, tmp_path)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(whole, tmp_path):
    first = Script(*arguments(tmp_path, epochs=EPOCHS))
    first.wait_for("global step: 2,")
    first.send_signal(signal.SIGSTOP)
    for others in (("--resume",), ("--overwrite", "--seed", 7)):
        done = run_script(*arguments(tmp_path, *others, epochs=EPOCHS), check=2)
        assert f"--saved_dir {tmp_path}: expected no other command that writes there, got process" in done.stderr
        assert f"process {first.pid} on " in done.stderr
        assert "Traceback" not in done.stderr
    first.send_signal(signal.SIGCONT)
    first.finish()
    assert_same_weights(whole, tmp_path)
    assert losses(whole) == losses(tmp_path)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_the_next_does_not_clear(whole, tmp_path):
    first = Script(*arguments(tmp_path, epochs=EPOCHS))
    first.wait_for("global step: 5,")
    first.send_signal(signal.SIGKILL)
    first.finish(check=-signal.SIGKILL)
    assert (tmp_path / ".lock").exists()
    left = tmp_path / f".unfinished-{'0' * 32}"
    left.mkdir()
    (left / "pytorch_model.bin").touch()
    run_script(*arguments(tmp_path, epochs=EPOCHS))
    assert_same_weights(whole, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_results_of_other_options_are_refused(whole):
    done = run_script(*arguments(whole, epochs=EPOCHS, learning_rate=1e-3), check=2)
    assert "--learning_rate: 5e-05 there, 0.001 now" in done.stderr
    assert "Traceback" not in done.stderr


TAKES_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may be told to ignore it
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.3, 1, 2])
@pytest.mark.parametrize(
    "program",
    [
        ("run_classifier.py", "--train_data_file", "nowhere", "--label_file", "nowhere"),
        ("-m", "run_ner", "--train_data_file", "nowhere", "--label_file", "nowhere"),
        ("-m", "bertorch.predict", "--model_dir", "nowhere", "--input_file", "-", "--output_file", "-"),
    ],
    ids=lambda program: " ".join(program[:2]),
)
def test_ctrl_c_in_the_imports_ends_without_a_traceback(program, seconds):
    """Or the error of a missing file does, which comes after them."""
    command_line = [sys.executable, "-c", TAKES_SIGINT, *program]
    with subprocess.Popen(command_line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT, 2)


@pytest.mark.slow
def test_ctrl_c_while_data_are_read_ends_without_a_traceback(tmp_path):
    lines = (REVIEWS / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(lines * 1000)
    process = Script(*arguments(tmp_path / "saved", train_data_file=tmp_path / "train.txt"))
    process.wait_for("train.txt: reads and tokenises")
    process.send_signal(signal.SIGINT)
    rest = process.finish(check=128 + signal.SIGINT).stderr
    assert "Traceback" not in rest
    assert "global step" not in rest
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["prepare.py", "run_ner.py"])
def test_a_users_program_of_our_name_keeps_its_ctrl_c(name, tmp_path):
    """`import bertorch` in it does not take the signal."""
    program = tmp_path / name
    program.write_text(
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nimport bertorch\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, program], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
