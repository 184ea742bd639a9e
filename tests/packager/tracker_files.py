"""What trackers leave behind, written by hand with the structure of the real thing: MLflow 3 (folder, SQLite
file, answer of the server), Weights & Biases, DVC 3, Neptune."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

RUN: Final = "52638f5c01ad4875bd05443cc5b2ff88"
COMMIT: Final = "c0ffee" * 6 + "abcd"
PARAMS: Final = {
    "lr": "0.01",
    "opt/beta": "0.9",
    "layers": "3",
    "augment": "True",
    "max_tokens": "128",
    "api_key": "abc",
    "data_url": "https://me:pw@host.example/x",
}
KEPT: Final = {
    "lr": 0.01,
    "opt/beta": 0.9,
    "layers": 3,
    "augment": True,
    "max_tokens": 128,
    "data_url": "https://host.example/x",
}
"""What may be published of `PARAMS`."""
TAGS: Final = {
    "mlflow.source.git.commit": COMMIT,
    "mlflow.source.name": "/srv/somebody/train.py",
    "mlflow.user": "somebody",
    "mlflow.note.content": "Reads digits.",
}
DATASETS: Final = (("a1", "train", "abcd1234", "training"), ("b2", "val", "ef567890", "evaluation"))


def write_mlruns(store: Path) -> Path:
    """A file store with one experiment; the folder of its run."""
    run = store / "824507826930561141" / RUN
    (run.parent / "datasets").mkdir(parents=True)
    (run.parent / "meta.yaml").write_text("experiment_id: '824507826930561141'\nname: digits\n")
    _write(
        run / "meta.yaml", f"run_id: {RUN}\nrun_name: night\nstatus: 3\nlifecycle_stage: active\ntags: []\n"
    )
    for folder, values in (("params", PARAMS), ("tags", TAGS)):
        for name, value in values.items():
            _write(run / folder / name, value)
    _write(run / "metrics" / "accuracy", "1795411884393 0.97 2\n1795411884392 0.9 1\n")
    _write(run / "metrics" / "val/loss", "1795411884394 0.1 0\n1795411884394 nan 1\n1795411884395 0.2 2\n")
    for source, name, digest, context in DATASETS:
        _write(
            run / "inputs" / f"in-{source}" / "meta.yaml",
            f"source_id: {source}\nsource_type: DATASET\ntags:\n  mlflow.data.context: {context}\n",
        )
        _write(
            run.parent / "datasets" / source / "meta.yaml",
            f"digest: {digest}\nname: {name}\nsource: '{{}}'\n",
        )
    _write(
        run / "artifacts" / "model" / "requirements.txt", "mlflow==3.4.0\ntorch==2.8.0\nmine @ file:///x\n"
    )
    return run


def write_mlflow_db(path: Path) -> Path:
    """The tables of MLflow's SQL store that hold a run."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            """
            create table runs (run_uuid varchar(32) primary key, name varchar(250), status varchar(9),
              lifecycle_stage varchar(20), experiment_id integer);
            create table params (key varchar(250), value varchar(8000), run_uuid varchar(32));
            create table tags (key varchar(250), value varchar(8000), run_uuid varchar(32));
            create table latest_metrics (key varchar(250), value float not null, timestamp bigint,
              step bigint, is_nan boolean not null, run_uuid varchar(32));
            create table datasets (dataset_uuid varchar(36), experiment_id integer, name varchar(500),
              digest varchar(36));
            create table inputs (input_uuid varchar(36), source_type varchar(36), source_id varchar(36),
              destination_type varchar(36), destination_id varchar(36));
            create table input_tags (input_uuid varchar(36), name varchar(255), value varchar(500));
            """
        )
        db.execute("insert into runs values (?, 'night', 'FINISHED', 'active', 1)", (RUN,))
        db.executemany("insert into params values (?, ?, ?)", [(k, v, RUN) for k, v in PARAMS.items()])
        db.executemany("insert into tags values (?, ?, ?)", [(k, v, RUN) for k, v in TAGS.items()])
        db.executemany(
            "insert into latest_metrics values (?, ?, 0, 0, ?, ?)",
            [("accuracy", 0.97, 0, RUN), ("val/loss", 0.2, 0, RUN), ("broken", 0, 1, RUN)],
        )
        for source, name, digest, context in DATASETS:
            db.execute("insert into datasets values (?, 1, ?, ?)", (source, name, digest))
            db.execute("insert into inputs values (?, 'DATASET', ?, 'RUN', ?)", (f"in-{source}", source, RUN))
            db.execute(
                "insert into input_tags values (?, 'mlflow.data.context', ?)", (f"in-{source}", context)
            )
    return path


def mlflow_answer() -> dict[str, Any]:
    """Of ``GET api/2.0/mlflow/runs/get``."""

    def pairs(values: dict[str, str]) -> list[dict[str, str]]:
        return [{"key": key, "value": value} for key, value in values.items()]

    return {
        "run": {
            "info": {"run_id": RUN, "experiment_id": "7", "status": "FINISHED", "lifecycle_stage": "active"},
            "data": {
                "params": pairs(PARAMS),
                "tags": pairs(TAGS),
                "metrics": [{"key": "accuracy", "value": 0.97}, {"key": "val/loss", "value": 0.2}],
            },
            "inputs": {
                "dataset_inputs": [
                    {
                        "tags": pairs({"mlflow.data.context": context}),
                        "dataset": {"name": name, "digest": digest, "source_type": "local", "source": "{}"},
                    }
                    for _, name, digest, context in DATASETS
                ]
            },
        }
    }


def write_wandb(folder: Path) -> Path:
    """A synchronized run's folder."""
    run = folder / "wandb" / "run-20260102_030405-mag1heto"
    metadata = {
        "python": "CPython 3.11.2", "os": "Linux", "host": "desk-7", "username": "somebody",
        "email": "me@x.example", "program": "/srv/somebody/train.py", "args": ["--key", "abc"],
        "cpu_count": 8, "gpu": "RTX", "git": {"remote": "https://me:pw@git.example/x", "commit": COMMIT},
    }  # fmt: skip
    config = (
        "_wandb:\n  value:\n    python_version: 3.11.2\nlr:\n  value: 0.01\nopt:\n  desc: null\n  value:\n"
        "    name: adam\n    layers: [1, 2]\ndata_hash:\n  value: 'sha256:12'\nsplits:\n"
        "  value:\n    train: 600\n"
        "wandb_key:\n  value: ghp_abcdefghijklmnopqrstuvwxyz\n"
    )
    summary = {
        "accuracy": 0.97,
        "loss": float("nan"),
        "_step": 9,
        "_runtime": 3.5,
        "plot": {"_type": "image"},
    }
    _write(run / "files" / "wandb-metadata.json", json.dumps(metadata))
    _write(run / "files" / "config.yaml", config)
    _write(run / "files" / "wandb-summary.json", json.dumps(summary))
    _write(run / "files" / "requirements.txt", "torch==2.8.0\nnumpy==2.4.6\n")
    return run


def write_dvc(folder: Path) -> Path:
    """A project of two stages: prepare makes features out of raw data, train reads these."""
    _write(
        folder / "dvc.lock",
        "schema: '2.0'\nstages:\n  prepare:\n    cmd: python prepare.py\n    deps:\n"
        "    - path: data/raw\n      hash: md5\n      md5: 1111.dir\n      size: 9\n      nfiles: 2\n"
        "    - path: prepare.py\n      hash: md5\n      md5: '2222'\n      size: 1\n"
        "    outs:\n    - path: data/features\n      hash: md5\n      md5: 3333.dir\n"
        "  train:\n    cmd: python train.py\n    deps:\n"
        "    - path: data/features\n      hash: md5\n      md5: 3333.dir\n"
        "    - path: train.py\n      hash: md5\n      md5: '4444'\n"
        "    params:\n      params.yaml:\n        train.lr: 0.01\n        train.layers: 3\n"
        "    outs:\n    - path: model.onnx\n      hash: md5\n      md5: '5555'\n",
    )
    _write(
        folder / "dvc.yaml",
        "stages:\n  train:\n    cmd: python train.py\n    metrics:\n"
        "    - scores.json:\n        cache: false\n",
    )
    _write(folder / "params.yaml", "train:\n  lr: 99\n")
    _write(folder / "scores.json", '{"accuracy": 0.97, "per_class": [1, 2]}')
    return folder


def write_neptune(folder: Path) -> Path:
    """One run as nested JSON, two as a table."""
    run = {
        "sys": {"id": "DIG-7", "owner": "somebody", "hostname": "desk-7", "description": "Reads digits."},
        "parameters": {"lr": 0.01, "opt": {"name": "adam"}, "neptune_api_token": "abc"},
        "metrics": {"accuracy": 0.97},
        "train": {"loss": 0.1, "curve": [1, 2]},
        "data": {"train": {"hash": "sha256:12"}, "test": {"hash": "sha256:34"}},
        "source_code": {"git": {"commit_id": COMMIT}},
        "monitoring": {"cpu": 97.0},
    }
    _write(folder / "run.json", json.dumps(run))
    _write(
        folder / "runs.csv",
        "sys/id,parameters/lr,metrics/accuracy,sys/failed\nDIG-7,0.01,0.97,False\nDIG-8,0.02,0.5,True\n",
    )
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
