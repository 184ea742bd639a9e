"""The command line as a whole: quick, documented, and one place where errors become exit codes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from tests.packager.cli_runner import all_commands, run

from skerry_contract import errors
from skerry_packager.cli.app import COMMANDS, EXIT_CODES, skerry

EVERY = [pytest.param(command, context, id=name) for name, command, context in all_commands()]
HEAVY = {
    "onnx",
    "onnxruntime",
    "numpy",
    "sqlite_utils",
    "rich",
    "cryptography",
    "fastapi",
    "skerry_fleet",
    "msgspec",
}


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from skerry_packager.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = _python(program, "--help")
    assert done.stdout.startswith("Usage: skerry")
    assert not HEAVY & set(done.stderr.split())
    assert not any(
        name.startswith("skerry_packager.cli.") for name in done.stderr.split() if name.endswith("pack")
    )


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))  # the demo trains a model
def test_help_of_a_command_imports_no_engine(name: str) -> None:
    program = (
        f"import sys; sys.argv = ['skerry', {name!r}, '--help']\n"
        "from skerry_packager.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    loaded = set(_python(program).stderr.split())
    assert not {"onnx", "onnxruntime", "numpy", "sqlite_utils", "fastapi", "skerry_fleet"} & loaded


@pytest.mark.parametrize(("command", "context"), EVERY)
def test_every_command_has_help_with_an_example(command: click.Command, context: click.Context) -> None:
    text = command.get_help(context)
    assert re.search(r"^  Example:\n\s* +\S", text, re.MULTILINE), text
    assert f"{context.command_path} " in text.split("Example:")[1]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{context.command_path} {parameter.name} has no help"


@pytest.mark.parametrize(("command", "context"), EVERY)
def test_every_command_that_answers_can_answer_in_json(
    command: click.Command, context: click.Context
) -> None:
    if isinstance(command, click.Group) or context.command_path == "skerry completion":
        return
    assert any("--json" in parameter.opts for parameter in command.params)


def test_the_summaries_are_the_commands_own() -> None:
    root = click.Context(skerry, info_name="skerry")
    for name, lazy in COMMANDS.items():
        command = skerry.get_command(root, name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == lazy.summary, name


def test_the_reference_page_is_what_help_says(root: Path) -> None:
    generator = _load(root / "docs" / "make_cli_reference.py")
    text = (root / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    written = _parts(text)
    real = {name: part.strip() for name, part in generator.sections().items()}
    if "skerry fleet" not in real:
        # A plugin is known once the distribution is installed; in a bare checkout the rest is compared.
        written = {name: part for name, part in written.items() if not name.startswith("skerry fleet")}
        written["skerry"] = re.sub(r"^  fleet .*\n", "", written["skerry"], flags=re.MULTILINE)
    assert list(written) == list(real), "run docs/make_cli_reference.py"
    for name, part in real.items():
        assert written[name] == part, f"run docs/make_cli_reference.py: {name} has changed"


def test_exit_codes_are_documented() -> None:
    text = run("--help").out
    assert re.findall(r"^    (\d)  ", text, re.MULTILINE) == ["0", "1", "2", "3"]
    assert set(EXIT_CODES.values()) <= {1, 2, 3}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SignatureError("x"), 1),
        (errors.MemoryBudgetError("x"), 1),
        (errors.NotFoundError("x"), 1),
        (errors.AccessError("x"), 1),
        (errors.ConflictError("x"), 1),
        (errors.InputError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.UnavailableError("x"), 3),
        (errors.TransferError("x"), 3),
        (errors.OverloadedError("x"), 3),
    ],
)
def test_an_error_becomes_its_exit_code_in_one_place(
    monkeypatch: pytest.MonkeyPatch, error: errors.SkerryError, code: int
) -> None:
    error.hint = "do this"
    _replace_command(monkeypatch, _raise(error))
    plain = run("boom")
    assert (plain.code, plain.out) == (code, "")
    assert plain.err == "error: x\n→ do this\n"
    machine = run("boom", "--json")
    assert (machine.code, machine.err) == (code, "")
    assert machine.json == {"error": {"code": error.code, "message": "x", "hint": "do this"}}


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_command(monkeypatch, _raise(ZeroDivisionError()))
    assert isinstance(CliRunner().invoke(skerry, ["boom"]).exception, ZeroDivisionError)


@pytest.mark.attack
def test_an_error_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_command(monkeypatch, _raise(errors.BundleError("\x1b[2Jgone [bold]", hint="\x07")))
    shown = run("boom").err
    assert not {"\x1b", "\x07"} & set(shown)
    assert "[bold]" in shown


@pytest.mark.parametrize(
    ("module", "extra"), [("onnx", "packager"), ("fastapi", "fleet"), ("sklearn", "demo")]
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    _replace_command(
        monkeypatch, _raise(ModuleNotFoundError(f"No module named '{module}.x'", name=f"{module}.x"))
    )
    outcome = run("boom")
    assert outcome.code == 2
    assert f"pip install 'skerry[{extra}]'" in outcome.err
    assert f"pip install '.[{extra}]'" in outcome.err
    assert run("boom", "--json").json["error"]["code"] == "config"


def test_without_click_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['click'] = None\nfrom skerry_packager.cli import main\nmain()"
    done = _python(program, check=False)
    assert done.returncode == 2
    assert "pip install 'skerry[packager]'" in done.stderr
    assert "pip install '.[packager]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_usage_errors_are_json_too() -> None:
    outcome = run("keys", "init", "--nme", "x", "--json")
    assert (outcome.code, outcome.json["error"]["code"]) == (2, "input")
    assert run("no-such-command").code == 2
    assert run("keys", "init", "--nme", "x").code == 2


def test_a_plugin_is_listed_without_being_imported_and_loaded_when_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_plugin(
        tmp_path, monkeypatch, "@click.command()\ndef hello():\n    click.echo('hello from outside')"
    )
    listed = run("--help")
    assert "hello" in listed.out
    assert "Says hello." in listed.out
    assert "hello_plugin" not in sys.modules
    assert run("hello").out == "hello from outside\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("raise ImportError('too old')", "too old"),
        ("hello = 3", "no command"),
        ("", "cannot be loaded"),
    ],
)
def test_a_broken_plugin_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    _install_plugin(tmp_path, monkeypatch, body)
    assert run("--help").code == 0
    assert run("runs", "--help").code == 0
    outcome = run("hello")
    assert outcome.code == 2
    assert said in outcome.text


def test_a_plugin_does_not_replace_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_plugin(tmp_path, monkeypatch, "raise SystemExit('taken over')", name="verify")
    assert run("verify", "--help").out.startswith("Usage: skerry verify")


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_completion_prints_the_script_of_the_shell(shell: str) -> None:
    outcome = run("completion", shell)
    assert outcome.code == 0
    assert f"_SKERRY_COMPLETE={shell}_complete" in outcome.out.replace("'", "")


def test_completion_offers_commands_and_options() -> None:
    def complete(words: str, position: int) -> list[str]:
        environment = {"_SKERRY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        program = "from skerry_packager.cli import main; main()"
        lines = _python(program, environment=environment, check=False).stdout.splitlines()
        return [line.partition(",")[2] for line in lines]

    assert complete("skerry ro", 1) == ["rollout"]
    assert complete("skerry keys in", 2) == ["init"]
    assert "--max-drop" in complete("skerry pack --max", 2)


def test_the_version_is_told() -> None:
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("skerry ")


def _raise(error: BaseException) -> Callable[[], None]:
    def callback(as_json: bool = False) -> None:
        raise error

    return callback


def _replace_command(monkeypatch: pytest.MonkeyPatch, callback: Callable[[], None]) -> None:
    """Make ``skerry boom [--json]`` call the callback."""
    command = click.Command(
        "boom", callback=callback, params=[click.Option(["--json", "as_json"], is_flag=True)]
    )
    monkeypatch.setattr(skerry, "get_command", lambda context, name: command if name == "boom" else None)


def _install_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, name: str = "hello") -> None:
    """A distribution with a command, as pip would leave it."""
    (folder / "hello_plugin.py").write_text(f"import click\n{body}\n")
    info = folder / "hello_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: hello-plugin\nVersion: 1.0\nSummary: Says hello.\n"
    )
    (info / "entry_points.txt").write_text(f"[skerry.commands]\n{name} = hello_plugin:hello\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "hello_plugin", raising=False)


def _python(
    program: str, *arguments: str, check: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
        capture_output=True,
        text=True,
        check=check,
    )


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parts(text: str) -> dict[str, str]:
    """Title -> section of the page, without the introduction."""
    found = re.split(r"^(?=#{2,4} skerry)", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].lstrip("# "): part.strip() for part in found}
