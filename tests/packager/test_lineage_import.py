"""Lineage out of the trackers that people use: what is mapped, what is never copied, what is refused."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.packager.tracker_files import (
    COMMIT,
    KEPT,
    RUN,
    mlflow_answer,
    write_dvc,
    write_mlflow_db,
    write_mlruns,
    write_neptune,
    write_wandb,
)

from skerry_contract.errors import (
    AccessError,
    DataError,
    InputError,
    NotFoundError,
    SkerryError,
    TransferError,
)
from skerry_packager.lineage import read_lineage_file
from skerry_packager.lineage_import import Imported, read_lineage
from skerry_packager.lineage_import.values import Collector

MLFLOW = {
    "hyperparameters": KEPT,
    "metrics": {"accuracy": 0.97, "val/loss": 0.2},
    "code_commit": COMMIT,
    "description": "Reads digits.",
    "data_hash": "mlflow:abcd1234",
    "dataset": "train",
    "data_splits": {
        "evaluation": {"name": "val", "digest": "ef567890"},
        "training": {"name": "train", "digest": "abcd1234"},
    },
}


class Tracker(BaseHTTPRequestHandler):
    """An MLflow server with one run; what it says can be set."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""
    headers_seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.headers_seen.append(dict(self.headers))
        known = self.path == f"/api/2.0/mlflow/runs/get?run_id={RUN}"
        self.send_response(self.status if known else 404)
        if self.status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal of the tests."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    Tracker.status, Tracker.body, Tracker.headers_seen = 200, json.dumps(mlflow_answer()).encode(), []
    with HTTPServer(("127.0.0.1", 0), Tracker) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"mlflow+http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def without(told: Any, *names: str) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in names}


# --- MLflow --------------------------------------------------------------------------------------


def test_an_mlflow_folder_its_store_its_database_and_its_server_tell_the_same(
    tmp_path: Path, server: str
) -> None:
    folder = write_mlruns(tmp_path / "mlruns")
    database = write_mlflow_db(tmp_path / "mlflow.db")
    found = {
        "folder": read_lineage(str(folder)),
        "store": read_lineage(f"{tmp_path / 'mlruns'}#{RUN}"),
        "database": read_lineage(f"{database}#{RUN}"),
        "uri": read_lineage(f"sqlite:///{database}#{RUN}"),
        "server": read_lineage(f"{server}/#{RUN}"),
    }
    for told in (imported.told for imported in found.values()):
        assert without(told, "environment", "tracking_uri") == MLFLOW
        assert told["environment"]["program"] == "train.py", "no folder of somebody's machine"
    assert found["folder"].told["environment"]["torch"] == "2.8.0"
    assert found["folder"].told["tracking_uri"] == found["database"].told["tracking_uri"] == f"runs:/{RUN}"
    assert found["server"].told["tracking_uri"].endswith(f"/#/experiments/7/runs/{RUN}")
    assert {imported.notes for imported in found.values()} == {
        ("not copied, by their names or their form secrets: api_key",)
    }


def test_several_training_sets_have_one_hash_whatever_their_order(tmp_path: Path) -> None:
    folder = write_mlruns(tmp_path)
    meta = folder / "inputs" / "in-b2" / "meta.yaml"
    meta.write_text(meta.read_text().replace("evaluation", "training"))
    told = read_lineage(str(folder)).told
    assert told["data_hash"].startswith("sha256:")
    assert set(told["data_splits"]) == {"training", "training (val)"}


def test_a_run_that_failed_or_was_deleted_is_told_so(tmp_path: Path) -> None:
    database = write_mlflow_db(tmp_path / "mlflow.db")
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("update runs set status = 'FAILED', lifecycle_stage = 'deleted'")
    notes = " ".join(read_lineage(f"{database}#{RUN}").notes)
    assert "has not finished well: FAILED" in notes
    assert "was deleted" in notes


def test_a_run_that_is_not_there_is_named(tmp_path: Path, server: str) -> None:
    write_mlruns(tmp_path / "mlruns")
    database = write_mlflow_db(tmp_path / "mlflow.db")
    for reference in (f"{tmp_path / 'mlruns'}#beef", f"{database}#beef", f"{server}/#beef"):
        with pytest.raises(NotFoundError, match="beef"):
            read_lineage(reference)
    with pytest.raises(InputError, match="many runs"):
        read_lineage(str(database))
    with pytest.raises(InputError, match="no MLflow run"):
        read_lineage(f"{database}#../x")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"", AccessError),
        (500, b"", TransferError),
        (302, b"", TransferError),
        (200, b"<html>", DataError),
        (200, b"[]", DataError),
        (200, b'{"run": {}}', DataError),
        (200, b" " * (9 << 20), DataError),
    ],
)
def test_a_server_that_answers_otherwise_is_refused(
    server: str, status: int, body: bytes, error: type[SkerryError]
) -> None:
    Tracker.status, Tracker.body = status, body
    with pytest.raises(error) as caught:
        read_lineage(f"{server}/#{RUN}")
    assert caught.value.hint


def test_a_server_that_is_not_there_and_an_address_without_a_run_are_refused(server: str) -> None:
    with pytest.raises(TransferError, match="cannot be reached"):
        read_lineage(f"mlflow+http://127.0.0.1:1/#{RUN}")
    for reference in (f"{server}/", f"{server}/#a b", f"mlflow+http://me:pw@127.0.0.1/#{RUN}"):
        with pytest.raises(InputError):
            read_lineage(reference)


@pytest.mark.attack
def test_credentials_go_to_this_machine_or_over_tls_only(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    read_lineage(f"{server}/#{RUN}")
    assert Tracker.headers_seen[0]["Authorization"] == "Bearer abc"
    with pytest.raises(AccessError, match="plain HTTP"):
        read_lineage(f"mlflow+http://tracker.example/#{RUN}")


@pytest.mark.attack
def test_a_database_that_counts_forever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_packager.lineage_import.mlflow._DB_SECONDS", 0.2)
    database = write_mlflow_db(tmp_path / "mlflow.db")
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("drop table params")
        db.execute(
            "create view params as with recursive n(i) as (select 1 union all select i + 1 from n) "
            "select 1 as key, 2 as value, (select count(*) from n) as run_uuid"
        )
    with pytest.raises(DataError, match="interrupted"):
        read_lineage(f"{database}#{RUN}")


# --- Weights & Biases ----------------------------------------------------------------------------


def test_a_wandb_run_is_read_from_its_folder_its_files_and_a_link_to_it(tmp_path: Path) -> None:
    run = write_wandb(tmp_path)
    (tmp_path / "wandb" / "latest-run").symlink_to(run)
    found = read_lineage(str(run))
    for path in (run / "files", run / "files" / "wandb-metadata.json", tmp_path / "wandb" / "latest-run"):
        assert read_lineage(str(path)) == found
    assert found.told == {
        "hyperparameters": {"lr": 0.01, "opt.name": "adam", "data_hash": "sha256:12", "splits.train": 600},
        "metrics": {"accuracy": 0.97},
        "code_commit": COMMIT,
        "data_hash": "sha256:12",
        "data_splits": {"train": 600},
        "environment": {
            "tracker": "Weights & Biases", "python": "CPython 3.11.2", "os": "Linux", "gpu": "RTX",
            "cpu_count": 8, "program": "train.py", "torch": "2.8.0", "numpy": "2.4.6",
        },
        "tracking_uri": "wandb:mag1heto",
    }  # fmt: skip
    assert "not copied, by their names or their form secrets: wandb_key" in found.notes


def test_a_run_that_was_never_synchronized_says_what_to_do(tmp_path: Path) -> None:
    files = tmp_path / "wandb" / "offline-run-20260102_030405-mag1heto" / "files"
    files.mkdir(parents=True)
    (files / "requirements.txt").write_text("torch==2.8.0\n")
    with pytest.raises(DataError) as caught:
        read_lineage(str(files.parent))
    assert "wandb sync" in caught.value.hint


# --- DVC -----------------------------------------------------------------------------------------


def test_a_dvc_project_tells_its_data_its_parameters_and_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    project = write_dvc(tmp_path)
    found = read_lineage(str(project))
    assert found == read_lineage(str(project / "dvc.lock"))
    assert found.told == {
        "data_hash": "dvc:md5:1111.dir",
        "dataset": "data/raw",
        "data_splits": {"data/raw": {"digest": "md5:1111.dir"}},
        "hyperparameters": {"train.lr": 0.01, "train.layers": 3},
        "metrics": {"scores.json.accuracy": 0.97},
        "environment": {"tracker": "DVC"},
    }
    train = read_lineage(f"{project / 'dvc.lock'}#train")
    assert train.told["data_hash"] == "dvc:md5:3333.dir", "what that stage alone has read"
    with pytest.raises(NotFoundError) as caught:
        read_lineage(f"{project / 'dvc.lock'}#test")
    assert "prepare, train" in caught.value.hint


def test_tracked_data_without_stages_is_enough(tmp_path: Path) -> None:
    (tmp_path / "data.csv.dvc").write_text("outs:\n- md5: '77'\n  size: 3\n  hash: md5\n  path: data.csv\n")
    (tmp_path / "params.yaml").write_text("lr: 0.1\n")
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.5}')
    for path in (tmp_path, tmp_path / "data.csv.dvc"):
        told = read_lineage(str(path)).told
        assert (told["data_hash"], told["hyperparameters"], told["metrics"]) == (
            "dvc:md5:77", {"lr": 0.1}, {"accuracy": 0.5},
        )  # fmt: skip


@pytest.mark.attack
def test_a_project_cannot_reach_outside_of_itself(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"salary": 1}')
    project = tmp_path / "project"
    project.mkdir()
    write_dvc(project)
    (project / "dvc.yaml").write_text("metrics:\n- ../secret.json\n- link.json\n")
    (project / "link.json").symlink_to(tmp_path / "secret.json")
    assert "metrics" not in read_lineage(str(project)).told


# --- Neptune and our own -------------------------------------------------------------------------


def test_neptune_exports_are_read(tmp_path: Path) -> None:
    write_neptune(tmp_path)
    found = read_lineage(str(tmp_path / "run.json"))
    assert found.told == {
        "hyperparameters": {"lr": 0.01, "opt/name": "adam"},
        "metrics": {"accuracy": 0.97, "train/loss": 0.1},
        "code_commit": COMMIT,
        "data_hash": "sha256:12",
        "data_splits": {"test": {"digest": "sha256:34"}, "train": {"digest": "sha256:12"}},
        "environment": {"tracker": "Neptune"},
        "description": "Reads digits.",
        "tracking_uri": "neptune:DIG-7",
    }
    assert "not copied, by their names or their form secrets: neptune_api_token" in found.notes
    row = read_lineage(f"{tmp_path / 'runs.csv'}#DIG-8")
    assert (row.told["hyperparameters"], row.told["metrics"]) == ({"lr": 0.02}, {"accuracy": 0.5})
    assert row.notes == ("the Neptune run DIG-8 has failed",)
    with pytest.raises(InputError, match="holds 2 runs"):
        read_lineage(str(tmp_path / "runs.csv"))
    with pytest.raises(NotFoundError):
        read_lineage(f"{tmp_path / 'runs.csv'}#DIG-9")


def test_our_own_file_is_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "run #1.toml").write_text('data_hash = "x"\nbase_model = "google/magika"\n')
    path = tmp_path / "run #1.toml"
    assert read_lineage(str(path)) == Imported(told=read_lineage_file(path), source="file")


# --- what is never copied, and what is refused ---------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("password", "x"), ("db.passwd", "x"), ("WANDB_API_KEY", "x"), ("awsSecretAccessKey", "x"),
        ("hf_token", "x"), ("a/credentials", "x"), ("lr", "AKIAABCDEFGHIJKLMNOP"), ("note", "sk-" + "a" * 40),
        ("cert", "-----BEGIN PRIVATE KEY-----"), ("jwt2", "eyJhbGciOiJI.eyJzdWIiOiIx.abc"),
    ],
)  # fmt: skip
def test_secrets_are_left_out_and_named(key: str, value: str) -> None:
    found = Collector("x")
    found.tree("hyperparameters", {key: value, "fine": 1})
    done = found.done()
    assert done.told == {"hyperparameters": {"fine": 1}}
    assert key in done.notes[0]
    assert value == "x" or value not in done.notes[0]


def test_values_are_bounded_and_what_is_left_out_is_counted() -> None:
    found = Collector("x")
    found.tree("hyperparameters", {f"p{index:03}": index for index in range(300)})
    found.tree("environment", {"long": "y" * 9000, "list": [1], "nan": float("nan"), "big": 2**80, "n": None})
    done = found.done()
    assert len(done.told["hyperparameters"]) == 256
    assert done.told["environment"] == {"long": "y" * 500, "big": str(2**80), "n": None}
    assert done.notes == (
        "2 values that are no single number or text were left out",
        "1 texts were cut to 500 characters",
        "44 values more than 256 of a kind were left out",
    )


def bomb(folder: Path) -> None:
    """YAML whose aliases would grow to millions of values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x]"]
    for one, other in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{other}: &{other} [{', '.join([f'*{one}'] * 6)}]")
    (folder / "meta.yaml").write_text("\n".join(lines))


@pytest.mark.attack
@pytest.mark.parametrize(
    "spoil",
    [
        bomb,
        lambda folder: (folder / "meta.yaml").write_text("[" * 5000),
        lambda folder: (folder / "meta.yaml").write_text("!!python/object/apply:os.system ['touch owned']"),
        lambda folder: (folder / "meta.yaml").write_text("- a list"),
        lambda folder: (folder / "meta.yaml").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "metrics" / "accuracy").write_text("many words here"),
        lambda folder: (folder / "params" / "lr").write_bytes(b"x" * (3 << 20)),
        lambda folder: [(folder / "tags" / f"t{index}").touch() for index in range(2100)],
    ],
)
def test_damaged_and_hostile_files_are_refused_with_their_names(tmp_path: Path, spoil: Any) -> None:
    folder = write_mlruns(tmp_path)
    spoil(folder)
    with pytest.raises(DataError, match=str(folder)) as caught:
        read_lineage(str(folder))
    assert caught.value.hint
    assert not Path("owned").exists()


@pytest.mark.attack
def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root")
    folder = write_mlruns(tmp_path / "mlruns")
    (folder / "params" / "link").symlink_to(tmp_path / "passwd")
    assert "link" not in read_lineage(str(folder)).told["hyperparameters"]
    os.mkfifo(folder / "params" / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        read_lineage(str(folder))


def test_what_is_no_run_is_refused_with_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for reference in ("empty", "model.onnx", "gone"):
        with pytest.raises(InputError) as caught:
            read_lineage(str(tmp_path / reference))
        assert "MLflow" in caught.value.hint
    with pytest.raises(InputError):
        read_lineage("https://mlflow.example/#abc")
    with pytest.raises(DataError, match="sys/id"):
        read_lineage(str(tmp_path / "x.csv"))
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0" + b"x" * 100)
    with pytest.raises(DataError, match="no MLflow store"):
        read_lineage(f"{tmp_path / 'other.db'}#abc")
