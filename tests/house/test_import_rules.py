"""The import rules of pyproject.toml hold, can be broken, and are true of the running program as well.

import-linter reads the source; what an import really drags in shows only in a fresh interpreter, so the light
parts are imported there too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "skerry_contract": "runtime",
    "skerry_runtime": "runtime",
    "skerry_packager": "packager",
    "skerry_fleet": "fleet",
}

# For each rule, an import that it exists to refuse, planted as a new module.
BREACHES = {
    "directions": ("skerry_runtime/planted.py", "import skerry_packager"),
    "fleet-without-runtime": ("skerry_fleet/planted.py", "import skerry_runtime"),
    "contract-without-io": ("skerry_contract/planted.py", "import socket"),
    "light-device": ("skerry_runtime/worker/planted.py", "import pydantic"),
    "light-agent": ("skerry_runtime/agent/planted.py", "import numpy"),
    "one-onnxruntime": ("skerry_runtime/worker/planted_too.py", "import onnxruntime"),
    "one-tflite": ("skerry_runtime/worker/planted_third.py", "import ai_edge_litert.interpreter"),
    "one-paho-device": ("skerry_runtime/agent/planted_too.py", "import paho.mqtt.client"),
    "one-paho-fleet": ("skerry_fleet/planted_too.py", "import paho.mqtt.client"),
    "pure-decisions": ("skerry_fleet/planted_feature/policy.py", "import socket"),
    "http-at-the-edge": ("skerry_fleet/planted_feature/service.py", "import fastapi"),
    "endpoints-without-repository": (
        "skerry_fleet/planted_feature/endpoints.py",
        "import skerry_fleet.planted_feature.repository",
    ),
}

HEAVY = ["click", "fastapi", "numpy", "onnx", "onnxruntime", "pydantic", "sqlite_utils", "starlette"]
WORLD = ["asyncio", "paho", "socket", "sqlite3", "ssl", "subprocess"]

IMPORT_ALL = """
import importlib, json, pkgutil, sys
package, skipped = sys.argv[1], sys.argv[2:]
root = importlib.import_module(package)
for module in pkgutil.walk_packages(root.__path__, package + "."):
    if module.name not in skipped:
        importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} | set(sys.modules))))
"""


def lint_imports(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", script, "--no-cache", "--no-logo", *arguments],
        cwd=folder,
        env={"PYTHONPATH": ":".join(str(folder / place) for place in ("runtime", "packager", "fleet"))},
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by_importing(package: str, *, skipped: tuple[str, ...] = ()) -> set[str]:
    """The names in sys.modules of a fresh interpreter that imported every module of `package`."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package, *skipped],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(result.stdout))


def test_the_rules_hold() -> None:
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_rule_has_a_breach() -> None:
    configuration = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert {contract["id"] for contract in configuration["contracts"]} == set(BREACHES)


@pytest.fixture(scope="module")
def tree_with_breaches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("breached")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for package, place in PACKAGES.items():
        shutil.copytree(REPOSITORY / place / package, folder / place / package)
    feature = folder / "fleet" / "skerry_fleet" / "planted_feature"
    feature.mkdir()
    for name in ("__init__.py", "repository.py"):
        (feature / name).touch()
    for name, line in BREACHES.values():
        (folder / PACKAGES[name.partition("/")[0]] / name).write_text(line + "\n")
    return folder


@pytest.mark.parametrize("rule", BREACHES)
def test_a_breach_is_seen(tree_with_breaches: Path, rule: str) -> None:
    name, _ = BREACHES[rule]
    module = name.removesuffix(".py").replace("/", ".")
    result = lint_imports(tree_with_breaches, "--contract", rule)
    assert result.returncode == 1, result.stdout + result.stderr
    assert module in result.stdout


def test_importing_the_contract_loads_nothing_heavy() -> None:
    assert loaded_by_importing("skerry_contract").isdisjoint(HEAVY)


def test_importing_the_contract_touches_no_world() -> None:
    # Signing is the one module with cryptography, which loads what it likes.
    loaded = loaded_by_importing("skerry_contract", skipped=("skerry_contract.signing",))
    assert loaded.isdisjoint([*WORLD, "cryptography"])


def test_importing_the_agent_loads_nothing_heavy() -> None:
    loaded = loaded_by_importing("skerry_runtime.agent")
    assert loaded.isdisjoint([*HEAVY, "cryptography", "skerry_runtime.worker"])
