"""GET /ui/training/runs: runs of `glm4 finetune` as their folders are, for who runs the server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from glm4.cli import main
from glm4.server.page.training import MAX_POINTS
from live import config, serve
from run_folders import write_run
from scripted_llm import scripted_llm

KEYS = ("the-first-key", "the-second-key")


def test_runs_of_a_folder(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "first", state="done")
    broken = write_run(runs / "second")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": NaN}\n[1]\n{"step": "x", "loss": 1}\n{"step": 6, "lo')  # being written
    (runs / "other").mkdir()
    made = scripted_llm(tmp_path / "m", lambda prompt: "\nx")
    with serve(config(ui=True, training=runs), made) as live, live.client() as client:
        assert client.get("/ui/session").json()["training"] is True
        listed = client.get("/ui/training/runs").json()["runs"]
        assert {(run["name"], run["state"]) for run in listed} == {("first", "done"), ("second", "running")}
        run = client.get("/ui/training/runs/second").json()
        assert run["lines"]["loss"] == {"steps": [1, 2, 3, 4], "values": [2.0, 1.0, 2 / 3, 0.5]}
        assert run["lines"]["eval_loss"] == {"steps": [4], "values": [0.75]}
        assert [sample["answer"] for sample in run["samples"]] == ["a2", "a1"]
        assert (run["step"], run["total_steps"], run["model"]) == (4, 8, "tiny")
        for wrong in ("third", "..", "%2e%2e%2fruns%2ffirst", "other"):
            assert client.get(f"/ui/training/runs/{wrong}").status_code == 404
        assert client.get("/training").status_code == 200


def test_a_long_run_is_thinned_out_and_a_dead_one_is_said_to_be(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=MAX_POINTS * 3, updated=time.time() - 3600, pid=2**22 + 1)
    made = scripted_llm(tmp_path / "m", lambda prompt: "\nx")
    with serve(config(ui=True, training=run), made) as live, live.client() as client:
        seen = client.get("/ui/training/runs/run").json()
        assert seen["state"] == "stopped"
        assert len(seen["lines"]["loss"]["steps"]) == MAX_POINTS
        assert seen["lines"]["loss"]["steps"][-1] == MAX_POINTS * 3


def test_it_is_for_the_operator_and_only_where_there_is_a_folder(tmp_path: Path) -> None:
    made = scripted_llm(tmp_path / "m", lambda prompt: "\nx")
    with serve(config(ui=True, api_keys=KEYS, training=write_run(tmp_path / "r")), made) as live, live.client() as http:
        assert http.get("/ui/training/runs").status_code == 401
        assert http.get("/ui/training/runs", headers={"x-api-key": KEYS[1]}).status_code == 403
        assert http.get("/ui/session", headers={"x-api-key": KEYS[1]}).json()["training"] is False
        assert http.get("/ui/training/runs", headers={"x-api-key": KEYS[0]}).status_code == 200
    made = scripted_llm(tmp_path / "n", lambda prompt: "\nx")
    with serve(config(ui=True), made) as live, live.client() as http:
        assert http.get("/ui/training/runs").json()["error"]["code"] == "no_training"
        assert http.get("/ui/session").json()["training"] is False


def test_the_option_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["ui", "--training", str(tmp_path / "none")], "is not a folder"),
        (["serve", "--training", str(tmp_path)], "add --ui"),
    ):
        assert main(arguments) == 2
        assert words in " ".join(capsys.readouterr().err.split())
