"""Trackio records a run of `minigpt train` on this machine."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from minigpt.training.data.corpus import PLAYS

pytestmark = pytest.mark.extra("track")


@pytest.mark.door("`minigpt train --report_to trackio`: every logged loss in its local database, offline", "trackio")
def test_trackio_records_the_losses(tmp_path):
    (tmp_path / "my.txt").write_text(PLAYS.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    command = [sys.executable, "-m", "minigpt", "train", "--data", "my.txt", "--output_dir", "run", "--max_steps", "20"]
    command += ["--logging_steps", "5", "--eval_iters", "1", "--sample_length", "5"]
    command += ["--report_to", "trackio", "--project", "plays"]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "tracked"), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)

    with sqlite3.connect(tmp_path / "tracked" / "plays.db") as database:
        tracked = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    states = sorted((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))
    history = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
    logged = [entry["loss"] for entry in history if "loss" in entry]
    assert logged
    assert [entry["train/loss"] for entry in tracked if "train/loss" in entry][: len(logged)] == logged
