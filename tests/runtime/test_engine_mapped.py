"""Mapped models: the ORT format, read where the file lies, and what must not get in by it."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.model_zoo import ZooModel, digit_images, digits, lay_out, onnx_bytes, wide
from tests.runtime.worker_harness import ZygoteHarness
from tests.waiting import wait_until

from skerry_contract.digests import hex_of
from skerry_contract.errors import EngineError, SlotError
from skerry_packager.variants.mapped import converted, versions_of
from skerry_runtime.ipc import Ready
from skerry_runtime.worker.bench_ops import flatbuffer_writer as fb
from skerry_runtime.worker.engines import import_engine
from skerry_runtime.worker.engines.model_file import ModelFile
from skerry_runtime.worker.engines.ort_guard import check_ort
from skerry_runtime.worker.generation import load_generation
from skerry_runtime.worker.loaded import load_model

MIB = 1 << 20


@cache
def mapped(name: str = "digits") -> ZooModel:
    plain = digits() if name == "digits" else wide()
    return replace(plain, data=converted(plain.data))


@pytest.fixture
def zygote() -> Iterator[ZygoteHarness]:
    with ZygoteHarness() as harness:
        yield harness


def test_a_mapped_model_answers_as_the_plain_one() -> None:
    images, _ = digit_images()
    plain, lean = (import_engine("onnx").load(model.data) for model in (digits(), mapped()))
    assert (lean.inputs, lean.outputs) == (plain.inputs, plain.outputs)
    wanted = plain.run({"image": images[:50]})["probabilities"]
    np.testing.assert_allclose(lean.run({"image": images[:50]})["probabilities"], wanted, atol=1e-6)


def test_its_conversion_gives_the_same_bytes_every_time() -> None:
    assert converted(digits().data) == mapped().data
    assert versions_of(mapped().data) == (8, 17)


def test_its_pages_are_the_kernels_to_drop(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "g", mapped("wide"))
    model = load_model(load_generation(folder))
    model.run_golden(0)
    # A machine that is short of memory may have dropped some already.
    assert 0 < model.session.mapped_bytes() < 8_000_000 + MIB
    plain = load_model(load_generation(lay_out(tmp_path / "plain", wide())))
    assert plain.session.mapped_bytes() == 0


PROGRAM = """
import os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np
from skerry_runtime.worker.engines import import_engine
path, how = sys.argv[1:]
engine = import_engine("onnx")
if how == "plain":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ask = lambda: run.run(None, {"x": np.ones((1, 1480), np.float32)})
else:
    from skerry_runtime.worker.engines.model_file import ModelFile
    session = engine.load(ModelFile(os.open(path, os.O_RDONLY)))
    ask = lambda: session.run({"x": np.ones((1, 1480), np.float32)})
for _ in range(5):
    ask()
with open("/proc/self/smaps_rollup") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("Anonymous:")))
"""


def unevictable_kib(path: Path, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_model_of_34_megabytes_holds_at_most_a_third_of_plain_onnxruntime(tmp_path: Path) -> None:
    weights = [np.random.default_rng(k).normal(size=(1480, 1480)).astype(np.float32) / 40 for k in range(4)]
    nodes = [
        helper.make_node("MatMul", [f"x{k}" if k else "x", f"w{k}"], ["y" if k == 3 else f"x{k + 1}"])
        for k in range(4)
    ]
    data = onnx_bytes(
        nodes,
        [("x", TensorProto.FLOAT, ["n", 1480])],
        [("y", TensorProto.FLOAT, ["n", 1480])],
        [numpy_helper.from_array(array, f"w{k}") for k, array in enumerate(weights)],
    )
    assert len(data) > 34_000_000
    (tmp_path / "plain.onnx").write_bytes(data)
    (tmp_path / "lean.ort").write_bytes(converted(data))
    plain = unevictable_kib(tmp_path / "plain.onnx", "plain")
    ours = unevictable_kib(tmp_path / "plain.onnx", "ours")
    lean = unevictable_kib(tmp_path / "lean.ort", "ours")
    assert lean <= 0.35 * plain
    assert ours <= 1.05 * plain, "a plain model is not held a second time as bytes"


@pytest.mark.slow
def test_a_mapped_model_runs_where_the_plain_one_is_killed(tmp_path: Path) -> None:
    """30 MB of weights in 56 MiB; file pages are the group's own, for it is the first to read them."""
    folder = Path("/sys/fs/cgroup/memory") / f"skerry-mapped-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(56 * MIB))
    except OSError:
        pytest.skip("this machine does not let tests make a memory cgroup (version 1)")
    try:
        weights = numpy_helper.from_array(np.ones((1480, 5000), np.float32), "w")
        data = onnx_bytes(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [("x", TensorProto.FLOAT, ["n", 1480])],
            [("y", TensorProto.FLOAT, ["n", 5000])],
            [weights],
        )
        ends = {}
        for name, content in (("plain", data), ("lean", converted(data))):
            path = tmp_path / name
            path.write_bytes(content)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            join = ("sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")
            command = [*join, sys.executable, "-c", PROGRAM, str(path), "ours"]
            ends[name] = subprocess.run(command, capture_output=True, check=False).returncode
        assert ends == {"plain": -signal.SIGKILL, "lean": 0}
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the end of its processes")
        folder.rmdir()


# --- the bytes that are loaded are the bytes that were hashed (B12, L3) ----------------------------


@pytest.mark.attack
def test_b12_a_file_swapped_after_it_was_hashed_is_not_the_one_that_runs(tmp_path: Path) -> None:
    for name, model in (("mapped", mapped()), ("plain", digits())):
        generation = load_generation(lay_out(tmp_path / name, model))
        path = generation.folder / hex_of(generation.variant.model.digest)
        file = generation.open_model()
        other = tmp_path / "other"
        other.write_bytes(b"another model" * 1000)
        os.replace(other, path)
        session = import_engine("onnx").load(file)
        np.testing.assert_allclose(
            session.run(model.golden[0])["probabilities"],
            generation.golden.samples[0].outputs["probabilities"],
            atol=1e-6,
        )


@pytest.mark.attack
@pytest.mark.parametrize("how", ["bit", "link", "long", "pipe", "public", "gone"])
def test_l3_what_is_not_the_file_that_was_verified_is_not_opened(tmp_path: Path, how: str) -> None:
    generation = load_generation(lay_out(tmp_path / "g", mapped()))
    path = generation.folder / hex_of(generation.variant.model.digest)
    data = bytearray(path.read_bytes())
    if how == "public":
        path.chmod(0o666)
    else:
        path.unlink()
    match how:
        case "bit":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        case "long":
            path.write_bytes(data + b"\0")
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(SlotError, match="damaged"):
        generation.open_model()


# --- hostile files ---------------------------------------------------------------------------------


def small(node: onnx.NodeProto, weight: np.ndarray | None = None) -> bytes:
    """A converted model of one node on [2, 2]."""
    shape = [2, 2]
    tensors = [] if weight is None else [numpy_helper.from_array(weight, "w")]
    return converted(
        onnx_bytes([node], [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], tensors)
    )


@pytest.mark.attack
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (small(helper.make_node("LeakyRelu", ["x"], ["y"])).replace(b"LeakyRelu", b"EPContext"), "compiled"),
        (mapped("wide").data[:-100_000], "damaged"),
        (
            mapped("wide").data.replace(struct.pack("<qq", 1000, 2000), struct.pack("<qq", 1000, 2001)),
            "needs",
        ),
        (
            mapped("wide").data.replace(struct.pack("<qq", 1000, 2000), struct.pack("<qq", 1 << 40, 2000)),
            "at most",
        ),
        (b"\x10\0\0\0ORTM", "damaged"),
        (b"\x10\0\0\0ORTM" + b"\xff" * 64, "damaged"),
    ],
    ids=["M4-context", "cut", "M10-size", "M6-huge", "empty", "offsets"],
)
def test_a_hostile_file_is_refused_before_the_engine_reads_it(data: bytes, message: str) -> None:
    assert data not in (mapped().data, mapped("wide").data)
    with pytest.raises(EngineError, match=message):
        import_engine("onnx").load(data)


def written(session: dict[int, Any], graph: dict[int, Any] | None = None) -> bytes:
    """A file of the format by hand: fields of the session, or of its graph."""
    model = fb.Table({0: fb.Scalar("q", 8), 7: fb.Table(graph or {})})
    return fb.write(fb.Table({0: "6", 1: model, **session}), b"ORTM")


def tensor(fields: dict[int, Any] | None = None) -> fb.Table:
    """Two floats, but for what is given."""
    known: dict[int, Any] = {2: fb.Numbers("q", [2]), 3: fb.Scalar("i", 1), 4: b"\0" * 8}
    return fb.Table({**known, **(fields or {})})


@pytest.mark.attack
@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({0: [tensor({6: fb.Scalar("q", 4096)})]}, "other files"),
        ({0: [tensor({4: b"\0" * 7})]}, "needs 8 bytes"),
        ({0: [tensor({2: fb.Numbers("q", [-2])})]}, "impossible shape"),
        ({2: [fb.Table({2: "evil.example", 5: "Steal"})]}, r"`evil\.example:Steal`"),
        ({2: [fb.Table({5: "Add", 10: [fb.Table({6: tensor({6: fb.Scalar("q", 1)})})]})]}, "other files"),
        (
            {2: [fb.Table({5: "If", 10: [fb.Table({7: fb.Table({2: [fb.Table({2: "x", 5: "Y"})]})})]})]},
            "`x:Y`",
        ),
    ],
    ids=["M1-external", "M3-short", "M10-negative", "M5-foreign", "M1-attribute", "M5-body"],
)
def test_the_rules_of_onnx_files_hold_here_too(graph: dict[int, Any], message: str) -> None:
    check_ort(written({}, {0: [tensor()], 2: [fb.Table({5: "Add"})]}))
    with pytest.raises(EngineError, match=message):
        check_ort(written({}, graph))


@pytest.mark.attack
def test_a_file_without_a_graph_or_of_another_version_is_refused() -> None:
    with pytest.raises(EngineError, match="no graph"):
        check_ort(fb.write(fb.Table({0: "6"}), b"ORTM"))
    with pytest.raises(EngineError, match="version '9'"):
        check_ort(written({0: "9"}))


@pytest.mark.attack
def test_m8_mutated_files_never_kill_more_than_their_own_process(
    zygote: ZygoteHarness, tmp_path: Path
) -> None:
    """Signed as they are, so that only guard, engine and golden samples stand against them."""
    chance = random.Random(4)
    answers = [import_engine("onnx").load(digits().data).run(sample) for sample in digits().golden]
    for number in range(15):
        data = bytearray(mapped().data)
        for _ in range(chance.choice((1, 4, 16))):
            data[chance.randrange(8, len(data))] = chance.randrange(256)
        folder = lay_out(tmp_path / str(number), replace(mapped(), data=bytes(data)), golden_outputs=answers)
        worker = zygote.spawn("preflight", folder, ram_limit_bytes=512 * MIB)
        worker.expect_end()
    worker = zygote.spawn("preflight", lay_out(tmp_path / "whole", mapped()))
    assert worker.expect(Ready).execution == "cpu, 1 thread"


def test_a_preflight_counts_no_pages_that_the_kernel_may_drop(zygote: ZygoteHarness, tmp_path: Path) -> None:
    lean = zygote.spawn("preflight", lay_out(tmp_path / "lean", mapped("wide"))).expect(Ready)
    plain = zygote.spawn("preflight", lay_out(tmp_path / "plain", wide())).expect(Ready)
    assert lean.rss_bytes < plain.rss_bytes - 2 * MIB


def test_a_memory_file_is_what_was_put_into_it() -> None:
    file = ModelFile.of(b"ab" * 100_000)
    assert bytes(file.content()) == b"ab" * 100_000
    assert os.readlink(file.path).startswith("/memfd:")
    with pytest.raises(EngineError, match="empty"):
        ModelFile.of(b"").content()
