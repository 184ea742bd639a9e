"""The device's configuration: strict, and safe by default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_contract.errors import ConfigError
from skerry_runtime.agent.flash import Endurance
from skerry_runtime.config import DeviceConfig, load_config

PUBLIC = "-----BEGIN PUBLIC KEY-----\nMFk\n-----END PUBLIC KEY-----\n"
BASE = 'device = "pi-7"\norg = "acme"\ndata_dir = "/var/lib/skerry"\n'
TRUST = f'[trust]\nengineers = ["""{PUBLIC}"""]\ndirector = """{PUBLIC}"""\n'
FLEET = '[fleet]\nhost = "127.0.0.1"\nport = 1883\npassword = "secret"\n'


Load = Callable[..., DeviceConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def read(text: str, *, insecure_dev: bool = False) -> DeviceConfig:
        path = tmp_path / "device.toml"
        path.write_text(text)
        return load_config(path, insecure_dev=insecure_dev)

    return read


def test_the_least_that_a_device_needs(load: Load) -> None:
    config = load(BASE)
    assert (config.device, config.org, config.fleet) == ("pi-7", "acme", None)
    assert config.serve.socket == Path("/var/lib/skerry/run/skerry.sock")
    assert config.serve.http is None
    assert config.control_socket == Path("/var/lib/skerry/run/agent.sock")
    assert (config.windows.seconds, config.windows.rows) == (3600.0, 100_000)
    assert config.buffer_bytes == 64 << 20
    assert config.flash == Endurance()


def test_everything_that_can_be_set(load: Load) -> None:
    config = load(
        BASE + 'device_class = "raspberry-pi-4"\n'
        + TRUST + FLEET.replace("password", 'username = "x"\npassword', 1)
        + '[serve]\nsocket = "/run/s.sock"\nhttp = "127.0.0.1:8500"\ntoken = "t"\n'
        + "[budgets]\nram_mb = 96\nlatency_p95_ms = 2.5\n[windows]\nseconds = 60\nrows = 500\n"
        + "[telemetry]\nbuffer_mb = 8\n[flash]\ncard_gb = 32\ncycles = 800\namplification = 3\n"
    )  # fmt: skip
    assert config.fleet is not None
    assert config.fleet.username == "x"
    assert config.serve.http == ("127.0.0.1", 8500)
    assert (config.budgets.ram_bytes, config.budgets.latency_p95_us) == (96 << 20, 2500)
    assert (config.windows.seconds, config.windows.rows, config.buffer_bytes) == (60.0, 500, 8 << 20)
    assert config.trust.engineers == (PUBLIC,)
    assert config.flash == Endurance(card_bytes=32 * 10**9, cycles=800, amplification=3.0)


def test_the_endurance_that_the_cards_maker_names(load: Load) -> None:
    flash = load(BASE + "[flash]\ntbw = 30\ncard_gb = 0\n").flash
    assert flash == Endurance(tbw_bytes=30 * 10**12, amplification=2.0)
    assert flash.bytes_in_all == 15e12


def test_a_secret_is_not_in_the_text_of_a_configuration(load: Load) -> None:
    assert "secret" not in repr(load(BASE + TRUST + FLEET))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("device = 'pi-7'\norg = 'acme'\n", "data_dir is missing"),
        (BASE + "color = 'red'\n", "color is not a key"),
        (BASE + "[serve]\nport = 1\n", "serve.port is not a key"),
        (BASE + "[budgets]\nram_mb = 'lots'\n", "budgets.ram_mb must be a number, not str"),
        (BASE + "[budgets]\nram_mb = true\n", "budgets.ram_mb must be a number, not bool"),
        (BASE + "[windows]\nseconds = 0\n", "windows.seconds is 0"),
        (BASE.replace("/var", "var"), "data_dir is 'var"),
        (BASE.replace("pi-7", "pi/7"), "device: 'pi/7' is not an identifier"),
        (BASE + "[fleet]\nhost = '127.0.0.1'\nport = 1883\n", "fleet.password is missing"),
        (BASE + FLEET, "trust.director is not"),
        (BASE + "[trust]\nengineers = ['ssh-rsa AAAA']\n", "is not a public key in PEM"),
        (BASE + "[trust]\ndirector = '-----BEGIN PRIVATE KEY-----'\n", "is a private key"),
        (BASE + "[serve]\nhttp = '8500'\n", "serve.http is '8500'"),
        (BASE + "[serve]\nhttp = '127.0.0.1:99999'\n", "serve.http"),
        (BASE.replace("/var/lib", "/" + "d" * 100), "longer than 107 bytes"),
        (BASE + "[flash]\ntbw = 30\ncycles = 500\n", "flash.tbw is given beside"),
        (BASE + "[flash]\nsize = 30\n", "flash.size is not a key"),
        (BASE + "[flash]\namplification = 0.5\n", "flash.amplification is 0.5"),
        (BASE + "[flash]\ncard_gb = nan\n", "flash.card_gb is nan"),
        ("device =\n", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_key(load: Load, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (BASE + TRUST + FLEET.replace("127.0.0.1", "fleet.example"), "tls_ca"),
        (BASE + "[serve]\nhttp = '0.0.0.0:8500'\n", "serve.token"),
    ],
)
def test_what_is_unsafe_is_for_try_outs_only(load: Load, text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert hint in caught.value.hint
    load(text, insecure_dev=True)


def test_beyond_loopback_with_protection_is_fine(load: Load) -> None:
    load(BASE + TRUST + FLEET.replace("127.0.0.1", "fleet.example") + "tls_ca = '/etc/ca.pem'\n")
    load(BASE + "[serve]\nhttp = '0.0.0.0:8500'\ntoken = 't'\n")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.toml")
    assert "--config" in caught.value.hint
