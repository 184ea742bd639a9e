"""What brings the runtime onto a machine: the script, the Debian package, cloud-init. Without a network."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from tests.builders import new_signer

from skerry_runtime.config import parse_config

DEVICES = Path(__file__).resolve().parents[2] / "devices"
SCRIPT = DEVICES / "install.sh"


def make_wheel(folder: Path, version: str) -> Path:
    """A wheel called skerry with the command skerry-runtime, as small as pip takes one."""
    info = f"skerry-{version}.dist-info"
    files = {
        "skerry_small.py": f"def main():\n    print('skerry-runtime {version}')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: skerry\n"
        f"Version: {version}\nProvides-Extra: onnx\nProvides-Extra: tflite\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nskerry-runtime = skerry_small:main\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    path = folder / f"skerry-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    return path


def install(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SCRIPT), "--root", str(root), "--python", sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def listing(root: Path) -> dict[str, str]:
    """Every path with its mode, and where links point."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else oct(path.stat().st_mode)
        for path in root.rglob("*")
    }


# --- the script ---------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_all(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "1.0.0")
    root = tmp_path / "root"
    done = install(root, "--wheels", str(tmp_path / "wheels"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not root.exists()
    for word in ("-m venv", "--no-index", "skerry-runtime.service", "current.new"):
        assert word in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installing_again_and_updating(tmp_path: Path) -> None:
    root, wheels = tmp_path / "root", tmp_path / "wheels"
    make_wheel(wheels, "1.0.0")
    config = tmp_path / "device.toml"
    config.write_text('device = "pi-7"\n')
    words = ("--wheels", str(wheels), "--config", str(config))
    done = install(root, *words)
    assert done.returncode == 0, done.stderr
    first = listing(root)
    assert first["etc/skerry"].endswith("750")
    assert first["etc/skerry/device.toml"].endswith("640")
    assert first["var/lib/skerry"].endswith("700")
    unit = root / "etc/systemd/system/skerry-runtime.service"
    assert unit.read_bytes() == (DEVICES / "systemd/skerry-runtime.service").read_bytes()
    assert first["usr/local/bin/skerry-runtime"] == "/opt/skerry/current/bin/skerry-runtime"
    assert said(root) == "skerry-runtime 1.0.0\n"

    # Again: nothing changes, and a configuration that was edited stays.
    (root / "etc/skerry/device.toml").write_text('device = "mine"\n')
    assert "is installed in" in install(root, *words).stdout
    assert listing(root) == first
    assert (root / "etc/skerry/device.toml").read_text() == 'device = "mine"\n'

    # A newer version: the one before stays, older ones go.
    before = first["opt/skerry/current"]
    (root / "opt/skerry/an-older-one").mkdir()
    shutil.rmtree(wheels)
    make_wheel(wheels, "2.0.0")
    assert install(root, *words).returncode == 0
    assert said(root) == "skerry-runtime 2.0.0\n"
    now = str((root / "opt/skerry/current").readlink())
    assert {path.name for path in (root / "opt/skerry").iterdir()} == {before, now, "current"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_update_that_fails_leaves_the_version_that_runs(tmp_path: Path) -> None:
    root, wheels = tmp_path / "root", tmp_path / "wheels"
    make_wheel(wheels, "1.0.0")
    assert install(root, "--wheels", str(wheels)).returncode == 0
    make_wheel(wheels, "2.0.0").write_bytes(b"not a wheel")
    done = install(root, "--wheels", str(wheels), "--package", "skerry==2.0.0")
    assert done.returncode != 0
    assert said(root) == "skerry-runtime 1.0.0\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--wheels", "/nowhere"), "there is no folder /nowhere"),
        (("--python", "no-such-python"), "there is no no-such-python"),
        (("--config", "/nowhere.toml"), "/nowhere.toml cannot be read"),
        (("--dance",), "unknown option --dance"),
        (("--wheels",), "--wheels needs a value"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_changed(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = install(tmp_path / "root", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "root").exists()


def test_a_folder_of_other_wheels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    assert "has no wheel of skerry" in install(tmp_path / "root", "--wheels", str(tmp_path / "wheels")).stderr


@pytest.mark.parametrize(
    "name", ["install.sh", "debian/build.sh", "debian/postinst", "debian/prerm", "debian/postrm"]
)
def test_the_scripts_are_plain_shell(name: str) -> None:
    assert subprocess.run(["sh", "-n", str(DEVICES / name)], check=False).returncode == 0


# --- the Debian package -------------------------------------------------------------------------------


def build(tmp_path: Path, name: str = "out") -> Path:
    make_wheel(tmp_path / "wheels", "1.0.0")
    (tmp_path / name).mkdir()
    command = ["sh", str(DEVICES / "debian/build.sh"), "--wheels", str(tmp_path / "wheels")]
    command += ["--out", str(tmp_path / name), "--arch", "arm64", "--package", "skerry[tflite]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_the_package_has_all_it_needs_and_nothing_foreign(tmp_path: Path) -> None:
    package = build(tmp_path)
    assert package.name == "skerry-runtime_1.0.0_arm64.deb"
    contents = subprocess.run(["dpkg-deb", "-c", str(package)], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=5) for line in contents.stdout.splitlines()]
    assert {row[1] for row in rows} == {"root/root"}
    assert {row[5]: row[0] for row in rows if not row[5].endswith("/")} == {
        "./usr/lib/systemd/system/skerry-runtime.service": "-rw-r--r--",
        "./usr/lib/sysusers.d/skerry.conf": "-rw-r--r--",
        "./usr/share/doc/skerry-runtime/copyright": "-rw-r--r--",
        "./usr/share/skerry/install.sh": "-rwxr-xr-x",
        "./usr/share/skerry/wheels/skerry-1.0.0-py3-none-any.whl": "-rw-r--r--",
    }
    fields = subprocess.run(
        ["dpkg-deb", "-f", str(package)], capture_output=True, text=True, check=True
    ).stdout
    for field in ("Package: skerry-runtime", "Version: 1.0.0", "Architecture: arm64", "python3 (>= 3.11)"):
        assert field in fields
    assert "@" not in fields.replace("skerry@localhost", "")
    subprocess.run(["dpkg-deb", "-e", str(package), str(tmp_path / "control")], check=True)
    postinst = (tmp_path / "control" / "postinst").read_text()
    assert "--package 'skerry[tflite]'" in postinst
    assert (tmp_path / "control" / "postinst").stat().st_mode & 0o111


def test_the_same_wheels_give_the_same_package(tmp_path: Path) -> None:
    one, other = build(tmp_path, "one"), build_again(tmp_path)
    assert one.read_bytes() == other.read_bytes()


def build_again(tmp_path: Path) -> Path:
    (tmp_path / "two").mkdir()
    command = ["sh", str(DEVICES / "debian/build.sh"), "--wheels", str(tmp_path / "wheels")]
    command += ["--out", str(tmp_path / "two"), "--arch", "arm64", "--package", "skerry[tflite]"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_package_brings_installs(tmp_path: Path) -> None:
    """As postinst does it, into a folder."""
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "-x", str(build(tmp_path)), str(tree)], check=True)
    script = tree / "usr/share/skerry/install.sh"
    command = ["sh", str(script), "--root", str(tree), "--python", sys.executable, "--no-units"]
    command += ["--wheels", str(tree / "usr/share/skerry/wheels"), "--bin", "/usr/bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said(tree) == "skerry-runtime 1.0.0\n"
    assert (tree / "usr/bin/skerry-runtime").is_symlink()


def test_without_a_wheel_there_is_no_package(tmp_path: Path) -> None:
    command = ["sh", str(DEVICES / "debian/build.sh"), "--wheels", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "exactly one wheel of skerry" in done.stderr


# --- cloud-init ---------------------------------------------------------------------------------------


def test_the_cloud_init_example_is_valid_and_its_configuration_too() -> None:
    text = (DEVICES / "cloud-init" / "user-data.yaml").read_text()
    assert text.startswith("#cloud-config\n")
    data = yaml.safe_load(text)
    assert set(data) == {"hostname", "packages", "write_files", "runcmd"}
    (file,) = data["write_files"]
    assert (file["path"], file["permissions"]) == ("/etc/skerry/device.toml", "0640")
    key = new_signer().verifier.pem.decode().splitlines()[1]
    raw = tomllib.loads(file["content"].replace("DIRECTOR-KEY", key).replace("ENGINEER-KEY", key))
    config = parse_config(raw)
    assert (config.device, config.data_dir) == (data["hostname"], Path("/var/lib/skerry"))
    assert all(isinstance(command, list) for command in data["runcmd"]), "no shell in between"
    assert ["systemctl", "enable", "--now", "skerry-runtime"] in data["runcmd"]


def said(root: Path) -> str:
    command = [str(root / "opt/skerry/current/bin/skerry-runtime"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
