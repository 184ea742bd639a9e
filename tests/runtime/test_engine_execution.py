"""Where a session runs: providers and threads as the manifest wants them and the machine has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from tests.runtime.model_zoo import describe, digit_images, digits, lay_out
from tests.runtime.worker_harness import ZygoteHarness
from tests.tflite_models import dense

from skerry_contract.digests import digest_of
from skerry_contract.errors import ManifestError
from skerry_contract.manifest import Execution, parse_manifest
from skerry_runtime import Model
from skerry_runtime.ipc import Ready
from skerry_runtime.worker.engines import import_engine
from skerry_runtime.worker.engines.providers import PROVIDERS, plan_for

CPU, CUDA, TENSORRT = (PROVIDERS[name] for name in ("cpu", "cuda", "tensorrt"))


@pytest.mark.parametrize(
    ("wanted", "available", "cores", "providers", "threads", "missing"),
    [
        (Execution(), [CPU], 4, (CPU,), 1, ()),
        (Execution(threads=3), [CPU], 4, (CPU,), 3, ()),
        (Execution(threads=3), [CPU], 2, (CPU,), 2, ("3 threads were wanted, and there are 2 cores",)),
        (Execution(providers=("cuda",)), [CUDA, CPU], 4, (CUDA, CPU), 1, ()),
        (Execution(providers=("tensorrt", "cuda")), [CPU, CUDA, TENSORRT], 4, (TENSORRT, CUDA, CPU), 1, ()),
        (
            Execution(providers=("tensorrt", "cuda")),
            [CUDA, CPU],
            4,
            (CUDA, CPU),
            1,
            ("tensorrt is not in this build of the engine",),
        ),
        (Execution(providers=("cpu",)), [CPU], 4, (CPU,), 1, ()),
        (Execution(providers=("azure",)), [CPU, "AzureExecutionProvider"], 4, (CPU,), 1,
         ("azure is not known to this version of the runtime",)),
    ],
)  # fmt: skip
def test_the_choice(
    wanted: Execution,
    available: list[str],
    cores: int,
    providers: tuple[str, ...],
    threads: int,
    missing: tuple[str, ...],
) -> None:
    plan = plan_for(wanted, available, cores)
    assert (plan.providers, plan.threads, plan.missing) == (providers, threads, missing)


def test_what_did_not_start_is_told() -> None:
    plan = plan_for(Execution(providers=("cuda",)), [CUDA, CPU], 4)
    assert plan.told([CUDA, CPU]) == "cuda and cpu, 1 thread"
    assert plan.told([CPU]) == "cpu, 1 thread; cuda did not start on this device"


def test_every_name_is_one_that_the_library_knows() -> None:
    assert set(PROVIDERS.values()) <= set(onnxruntime.get_all_providers())
    assert not any("Azure" in provider for provider in PROVIDERS.values()), "it would send data away"


def test_a_provider_that_is_not_installed_costs_speed_only() -> None:
    images, _ = digit_images()
    assert CUDA not in onnxruntime.get_available_providers()
    session = import_engine("onnx").load(digits().data, Execution(providers=("cuda",)))
    assert session.execution == "cpu, 1 thread; cuda is not in this build of the engine"
    assert session.run({"image": images[:3]})["probabilities"].shape == (3, 10)


def test_threads_are_made_and_wait_without_work() -> None:
    """In a fresh process: the library's threads are counted by the kernel."""
    program = (
        "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "import sys\n"
        "from skerry_contract.manifest import Execution\n"
        "from skerry_runtime.worker.engines import import_engine\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "model, before = sys.stdin.buffer.read(), count()\n"
        "session = import_engine('onnx').load(model, Execution(threads=2))\n"
        "print(count() - before, session.execution, sep=';')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=digits().data, capture_output=True, check=True
    )
    made, told = done.stdout.decode().strip().split(";", 1)
    several = len(os.sched_getaffinity(0)) > 1
    assert made == ("1" if several else "0")
    assert told.startswith("cpu, 2 threads" if several else "cpu, 1 thread")


def test_tflite_takes_threads_and_tells_what_it_lacks() -> None:
    session = import_engine("tflite").load(dense().data(), Execution(providers=("cuda",), threads=1))
    assert session.execution == "cpu, 1 thread; cuda is not in this build of the engine"


def with_execution(folder: Path, execution: Execution) -> Path:
    """The same generation whose manifest wants it so."""
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    variant = replace(manifest.variants[0], execution=execution)
    data = replace(manifest, variants=(variant,)).to_bytes()
    (folder / "manifest.json").write_bytes(data)
    describe(folder, digest_of(data))
    return folder


def test_the_manifest_s_wish_reaches_the_session_and_its_end_the_agent(tmp_path: Path) -> None:
    folder = with_execution(lay_out(tmp_path / "g", digits()), Execution(providers=("xnnpack",), threads=1))
    expected = "cpu, 1 thread; xnnpack is not in this build of the engine"
    with Model.open(folder) as model:
        assert model.execution == expected
    with ZygoteHarness() as zygote:
        assert zygote.spawn("preflight", folder).expect(Ready).execution == expected


def test_a_manifest_without_a_wish_is_what_it_was(tmp_path: Path) -> None:
    data = (lay_out(tmp_path / "g", digits()) / "manifest.json").read_bytes()
    assert b"execution" not in data
    wish = Execution(providers=("cuda",), threads=4)
    variant = replace(parse_manifest(data).variants[0], execution=wish)
    there = replace(parse_manifest(data), variants=(variant,)).to_bytes()
    assert parse_manifest(there).variants[0].execution == wish


@pytest.mark.parametrize("execution", [{"providers": ["../x.so"]}, {"providers": "cuda"}, {"threads": -1}])
def test_a_wrong_wish_is_refused(tmp_path: Path, execution: dict[str, object]) -> None:
    data = (lay_out(tmp_path / "g", digits()) / "manifest.json").read_bytes()
    raw = json.loads(data)
    raw["variants"][0]["execution"] = execution
    with pytest.raises(ManifestError, match="execution"):
        parse_manifest(json.dumps(raw).encode())


def test_litert_says_nothing_to_the_terminal(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(dense().data())
    program = (
        "import os, sys\n"
        "from skerry_runtime.worker.engines import import_engine\n"
        "from skerry_runtime.worker.engines.model_file import ModelFile\n"
        "engine = import_engine('tflite')\n"
        "engine.load(ModelFile(os.open(sys.argv[1], os.O_RDONLY)))\n"
        "engine.load(open(sys.argv[1], 'rb').read())\n"
        "print('mine', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, model], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "mine\n")
