"""Child processes that are asked by lines of JSON and answer with one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
_QUIET: Final = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


class ChildError(Exception):
    """A child died or answered nonsense."""


class Child:
    """``python -m benchmarks.runtime.MODULE ARGUMENTS`` in this interpreter's environment."""

    def __init__(self, module: str, *arguments: str) -> None:
        words = [sys.executable, "-m", f"benchmarks.runtime.{module}", *arguments]
        questions, write = os.pipe()
        read, answers = os.pipe()
        self._process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdin=questions, stdout=answers)
        os.close(questions)
        os.close(answers)
        self._questions, self._answers = os.fdopen(write, "w"), os.fdopen(read)
        self._name = module

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises `ChildError`."""
        self.begin(**question)
        return self.answer()

    def begin(self, **question: Any) -> None:
        """Ask, and go on; `answer` waits."""
        try:
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
        except OSError as error:
            raise ChildError(f"{self._name} ended: {error}") from error

    def answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise ChildError(f"{self._name} ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ChildError(f"{self._name}: {found['error']}")
        return found

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._questions.close()
        self._answers.close()


def environment(**more: str) -> Mapping[str, str]:
    """For every process that is measured."""
    return {**os.environ, **_QUIET, **more}


def serve(answers: Mapping[str, Any]) -> None:
    """The child's side: ``do`` of each line names the function that answers the rest of it."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = answers[question.pop("do")](**question)
        except (OSError, ValueError, RuntimeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(answer) + "\n")
        out.flush()
