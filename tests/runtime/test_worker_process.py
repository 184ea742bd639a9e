"""What a worker asks of its kernel, tried on a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from skerry_contract.limits import MIB
from skerry_runtime.worker import process
from skerry_runtime.worker.process import PeakMemory, resident_bytes

SIZE = 64 * MIB


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_peak_between_two_looks_is_seen_once() -> None:
    memory = PeakMemory()
    before = resident_bytes()
    held = b"x" * SIZE
    assert len(held) == SIZE
    del held
    assert memory.take() >= before + SIZE * 9 // 10
    assert memory.take() < before + SIZE // 2


def test_where_the_kernel_keeps_no_mark_samples_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_reset_high_water", lambda: False)
    memory = PeakMemory()
    before = resident_bytes()
    held = b"x" * SIZE
    memory.sample()
    assert len(held) == SIZE
    del held
    assert memory.take() >= before + SIZE * 9 // 10
    assert memory.take() < before + SIZE // 2


def test_memory_beyond_the_limit_is_refused_and_below_it_given() -> None:
    program = (
        "from skerry_runtime.worker.process import limit_memory\n"
        "limit_memory(128 << 20)\n"
        "held = bytearray(64 << 20)\n"
        "try: bytearray(256 << 20)\n"
        "except MemoryError: print('refused', len(held))\n"
    )
    assert run(program) == f"refused {64 * MIB}"


def test_standard_output_becomes_standard_error() -> None:
    program = (
        "import os\n"
        "from skerry_runtime.worker.process import silence_standard_streams\n"
        "silence_standard_streams()\n"
        "os.write(1, b'EP Error')\n"
        "assert os.read(0, 1) == b''\n"
    )
    assert run(program) == ""


def test_a_child_whose_parent_is_gone_already_ends() -> None:
    program = (
        "from skerry_runtime.worker.process import die_with_parent\n"
        "die_with_parent(1 << 22)\nprint('alive')\n"
    )
    assert run(program) == ""


def test_a_process_has_a_name() -> None:
    program = (
        "from skerry_runtime.worker.process import name_process\n"
        "name_process('skerry-test')\nprint(open('/proc/self/comm').read())\n"
    )
    assert run(program) == "skerry-test"
