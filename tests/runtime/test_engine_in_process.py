"""``Model.open`` of a bundle file: what docs/python.md says, and that nothing unverified gets in."""

from __future__ import annotations

import gc
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.builders import new_signer
from tests.runtime.agent_world import make_bundle
from tests.runtime.model_zoo import digit_images, digits

from skerry_contract.errors import BundleError, IncompatibleError, InputError, SelfTestError, SignatureError
from skerry_packager.variants.mapped import converted
from skerry_runtime import Model
from skerry_runtime.bundle_file import Key

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "data" / "bundles" / "v1"
BUNDLE, KEY = FOLDER / "digits-1.0.0.skerry", FOLDER / "digits.pub"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.S | re.M)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where bundles are unpacked."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(BUNDLE, tmp_path)
    shutil.copy(KEY, tmp_path / "engineer.pub")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(EXAMPLES) == 4
    for example in EXAMPLES:
        exec(compile(example, "python.md", "exec"), names)  # noqa: S102 - the examples are what is tested


def test_a_bundle_file_reads_digits_and_leaves_nothing_behind(temporary: Path) -> None:
    images, labels = digit_images()
    with Model.open(BUNDLE, key=KEY) as model:
        assert list(temporary.iterdir()) == []
        scores = model.infer({"image": images})["probabilities"]
        assert (scores.argmax(axis=1) == labels).mean() > 0.85
        assert model.reason.startswith("int8-store (onnx): first variant of the bundle that runs here")
    assert not list(temporary.iterdir())


def test_a_key_may_be_text_or_one_of_several() -> None:
    other = new_signer().verifier.pem.decode()
    keys: list[Key | list[Key]] = [KEY.read_text(), [other, KEY], [KEY.read_text(), other]]
    for key in keys:
        assert Model.open(BUNDLE, key=key).manifest.name == "digits"


def test_a_mapped_model_outlives_its_folder(tmp_path: Path, temporary: Path) -> None:
    signer = new_signer()
    lean = replace(digits(), data=converted(digits().data))
    path = make_bundle(signer, model=lean).write(tmp_path)
    model = Model.open(path, key=signer.verifier.pem.decode())
    gc.collect()
    assert list(temporary.iterdir()) == []
    images, labels = digit_images()
    assert (model.infer({"image": images})["probabilities"].argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.attack
@pytest.mark.parametrize("how", ["no key", "wrong key", "bit", "cut", "more"])
def test_what_does_not_verify_is_not_opened(tmp_path: Path, temporary: Path, how: str) -> None:
    data, key = bytearray(BUNDLE.read_bytes()), [KEY.read_text()]
    match how:
        case "no key":
            key = []
        case "wrong key":
            key = [new_signer().verifier.pem.decode()]
        case "bit":
            data[len(data) // 2] ^= 1
        case "cut":
            data = data[:-1000]
        case "more":
            data += b"\0"
    path = tmp_path / "digits.skerry"
    path.write_bytes(data)
    with pytest.raises(SignatureError if "key" in how else BundleError):
        Model.open(path, key=key)
    assert list(temporary.iterdir()) == []


def test_other_refusals_say_what_to_do(tmp_path: Path) -> None:
    signer = new_signer()
    pem = signer.verifier.pem.decode()
    with pytest.raises(InputError, match="cannot be read"):
        Model.open(tmp_path / "missing.skerry", key=pem)
    with pytest.raises(InputError, match="the key"):
        Model.open(BUNDLE, key=tmp_path / "missing.pub")
    with pytest.raises(SelfTestError):
        Model.open(make_bundle(signer, wrong_golden=True).write(tmp_path), key=pem)
    only = make_bundle(signer, device_classes=("camera",)).write(tmp_path)
    with pytest.raises(IncompatibleError, match="camera"):
        Model.open(only, key=pem)
    with Model.open(only, key=pem, device_class="camera") as model:
        assert model.infer({"image": np.zeros((1, 1, 8, 8), np.float32)})["probabilities"].shape == (1, 10)
