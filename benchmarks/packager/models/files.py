"""Files of known type for magika: Python's own, those of installed packages, and some made on the spot."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import sysconfig
import tarfile
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .recipe import MODELS, Data, copy_model, packaged

_SUFFIXES = (
    ".c=c .h=c .cpp=cpp .hpp=cpp .css=css .csv=csv .html=html .ini=ini .jpg=jpeg .js=javascript .json=json "
    ".md=markdown .npy=npy .npz=npz .onnx=onnx .pdf=pdf .pkl=pickle .png=png .proto=proto .py=python "
    ".pyc=pythonbytecode .rst=rst .sh=shell .so=elf .svg=svg .tex=latex .tif=tiff .toml=toml .ttf=ttf "
    ".wav=wav .xml=xml .yaml=yaml .yml=yaml"
)
_TYPES = dict(pair.split("=") for pair in _SUFFIXES.split())
_MOST_PER_TYPE = 24
_BLOCK, _PART, _PADDING = 4096, 1024, 256


def features(content: bytes) -> np.ndarray:
    """``[2048]``: first and last 1024 bytes, stripped, padded with 256, as magika cuts them."""
    begin = list(content[:_BLOCK].lstrip()[:_PART])
    end = list(content[-_BLOCK:].rstrip()[-_PART:])
    return np.array(
        begin + [_PADDING] * (_PART - len(begin)) + [_PADDING] * (_PART - len(end)) + end, dtype=np.int32
    )


def _found() -> Iterator[tuple[str, bytes]]:
    """Type and content of files on disk, in the order of their names."""
    paths = sysconfig.get_paths()
    for root in (Path(paths["stdlib"]), Path(paths["purelib"]), MODELS):
        for path in sorted(root.rglob("*")):
            kind = _TYPES.get(path.suffix)
            if kind is None or (root.name != "site-packages" and "site-packages" in path.parts):
                continue
            if path.is_file() and path.stat().st_size >= 64:
                yield kind, path.read_bytes()


def _made() -> Iterator[tuple[str, bytes]]:
    """Content that the standard library and Pillow write."""
    from PIL import Image

    rng = np.random.default_rng(41)
    text = (Path(sysconfig.get_paths()["stdlib"]) / "this.py").read_bytes() * 3
    for turn in range(_MOST_PER_TYPE):
        body = text[turn * 7 :] + rng.bytes(200 + turn * 10)
        yield "gzip", gzip.compress(body, mtime=0)
        yield "bzip", bz2.compress(body)
        yield "xz", lzma.compress(body)
        yield "pickle", pickle.dumps({f"k{i}": [turn, i, "text" * i] for i in range(30)})
        yield (
            "json",
            json.dumps(
                {f"key{i}": {"at": i * turn, "names": ["a", "b", str(i)]} for i in range(20)}
            ).encode(),
        )
        rows = "\n".join(f"{i},{i * turn},name{i},{i / 7:.3f}" for i in range(40))
        yield "csv", f"id,count,name,share\n{rows}\n".encode()
        yield (
            "xml",
            b"<?xml version='1.0'?>\n<list>"
            + b"".join(b"<item n='%d'>%d</item>\n" % (i, i * turn) for i in range(40))
            + b"</list>",
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(f"note{turn}.txt"), body)
        yield "zip", buffer.getvalue()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(f"note{turn}.txt")
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
        yield "tar", buffer.getvalue()
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as sound:
            sound.setparams((1, 2, 8000 + turn, 0, "NONE", ""))
            sound.writeframes(rng.bytes(6000))
        yield "wav", buffer.getvalue()
        database = sqlite3.connect(":memory:")
        database.execute("create table things (id integer primary key, name text)")
        names = [(f"n{i}",) for i in range(50 + turn)]
        database.executemany("insert into things (name) values (?)", names)
        yield "sqlite", database.serialize()
        database.close()
        picture = Image.fromarray(rng.integers(0, 255, (24 + turn, 40, 3), np.uint8))
        for form, kind in (
            ("BMP", "bmp"),
            ("GIF", "gif"),
            ("JPEG", "jpeg"),
            ("PNG", "png"),
            ("TIFF", "tiff"),
            ("WEBP", "webp"),
            ("PDF", "pdf"),
        ):
            buffer = io.BytesIO()
            picture.save(buffer, form)
            yield kind, buffer.getvalue()


def make_magika(folder: Path) -> Data:
    """Labels are places in the model's own list of types."""
    copy_model("magika/magika/models/standard_v3_3/model.onnx", folder)
    config = json.loads(packaged("magika/magika/models/standard_v3_3/config.min.json").read_text())
    names = config["target_labels_space"]
    taken: dict[str, set[bytes]] = {}
    rows, labels = [], []
    for kind, content in (*_made(), *_spread(_found())):
        seen = taken.setdefault(kind, set())
        row = features(content)
        if len(seen) >= _MOST_PER_TYPE or row.tobytes() in seen or kind not in names:
            continue
        seen.add(row.tobytes())
        rows.append(row)
        labels.append(names.index(kind))
    return Data({"bytes": np.stack(rows)[:, None, :]}, np.array(labels))


def _spread(files: Iterator[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """At most three times as many of each type as are taken, spread over all that there are."""
    by_kind: dict[str, list[bytes]] = {}
    for kind, content in files:
        by_kind.setdefault(kind, []).append(
            content[:_BLOCK] + content[-_BLOCK:] if len(content) > 2 * _BLOCK else content
        )
    picked = []
    for kind, contents in by_kind.items():
        step = max(1, len(contents) // (3 * _MOST_PER_TYPE))
        picked += [(kind, content) for content in contents[::step]]
    return picked
