"""Two machines, as two network namespaces that a pair of virtual cards joins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import REVIEWS, Script
from tests.log_lines import command

ADDRESSES = {"one": "10.77.0.1", "two": "10.77.0.2"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines():
    """The names of two namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs ip and the right to make network namespaces")
    names = {machine: f"bertorch-{os.getpid()}-{machine}" for machine in ADDRESSES}
    try:
        try:
            for name in names.values():
                ip("netns", "add", name)
            ends = [("name", "card", "netns", name) for name in names.values()]
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot make network namespaces: {error.stderr.decode().strip()}")
        for machine, name in names.items():
            ip("-n", name, "address", "add", f"{ADDRESSES[machine]}/24", "dev", "card")
            for card in ("lo", "card"):
                ip("-n", name, "link", "set", card, "up")
        yield list(names.values())
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def arguments(saved_dir: Path, **settings: object) -> list[object]:
    options = {"label_file": REVIEWS / "labels.txt", "max_seq_length": 32, "epochs": 1, "logging_steps": 1}
    return command("run_classifier.py", REVIEWS / "train.txt", REVIEWS / "dev.txt", saved_dir, **(options | settings))


@pytest.mark.slow
def test_two_machines_log_once_and_train_as_one(machines, tmp_path, monkeypatch):
    """The second machine does not see the first one's folder, as without a shared disk."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "card")
    torchrun = f"-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --master_addr={ADDRESSES['one']}".split()
    runs = [
        Script(
            *arguments(tmp_path / f"of machine {rank}", batch_size=16),
            launcher=(*torchrun, "--master_port=29511", f"--node_rank={rank}"),
            within=("ip", "netns", "exec", name),
        )
        for rank, name in enumerate(machines)
    ]
    first, second = (run.finish() for run in runs)
    assert "2 process(es), batch 16 each" in first.stderr
    assert "global step: 15, epoch: 1, batch: 15" in first.stderr
    assert "global step" not in second.stderr
    assert not (tmp_path / "of machine 1").exists()
    together = torch.load(tmp_path / "of machine 0" / "pytorch_model.bin", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in together.values())
