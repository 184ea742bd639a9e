"""The link to the fleet's broker: MQTT 3.1.1 by paho, which only this file imports.

It never gives up and never blocks: without a broker, or with wrong credentials, it says so once, tries again
with full jitter, and everything else goes on. Every connection has a higher epoch than all before; the will
says ``lost``, a clean end says ``offline``. A QoS 1 message from the fleet is acknowledged only after its
handler is done with it.
"""

from __future__ import annotations

import random
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .lean import without_modules

# What paho imports for proxies and name records, which are not used here, costs up to 8 MB that no kernel
# can evict: HTTP, e-mail, and dnspython with its tables where that is installed.
with without_modules("dns", "socks", stand_ins=("urllib.request",)):
    import paho.mqtt.client as mqtt

from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from skerry_contract.errors import AccessError, ConfigError, MessageError, SkerryError, UnavailableError
from skerry_contract.messages import Presence, PresenceMessage, encode
from skerry_contract.topics import DeviceDown, DeviceUp, Down, Up, down_filter, parse_topic

from ..config import FleetConfig
from .log import get_logger

KEEPALIVE_SECONDS: Final = 60
CONNECT_SECONDS: Final = 10.0
_MAX_QUEUED: Final = 256
_BAD_CREDENTIALS: Final = frozenset({"Bad user name or password", "Not authorized"})
_log = get_logger("link")

Done = Callable[[], None]


class Transport(Protocol):
    """What the agent needs of a link."""

    def start(self) -> None:
        """Begin to connect; returns at once."""

    def publish(self, channel: Up, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message over; False if there is no connection."""

    def stop(self, timeout: float) -> None:
        """Say ``offline``, then disconnect."""


class Listener(Protocol):
    """Called in the link's own thread: hand over, do not work."""

    def link_up(self, epoch: int) -> None:
        """Connected and subscribed."""

    def link_down(self, error: SkerryError) -> None:
        """The connection ended or could not be made; said once for the same reason."""

    def link_message(self, channel: Down, payload: bytes, done: Done) -> None:
        """A message; call ``done`` when it may be forgotten by the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    org: str
    device: str


class MqttLink:
    """A `Transport` over MQTT 3.1.1 with a persistent session."""

    def __init__(
        self, config: FleetConfig, identity: Identity, listener: Listener, next_epoch: Callable[[], int]
    ) -> None:
        """``next_epoch`` is called before every connection and returns a number higher than ever before.

        Raises:
            ConfigError: the CA file cannot be used.
        """
        self._config = config
        self._identity = identity
        self._listener = listener
        self._next_epoch = next_epoch
        self._epoch = 0
        self._failures = 0
        self._said = ""
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=identity.device,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        self._client.username_pw_set(config.username, config.password)
        if config.tls_ca:
            self._client.tls_set_context(_tls(config.tls_ca))
        self._client.connect_timeout = CONNECT_SECONDS
        self._client.max_inflight_messages_set(64)
        self._client.max_queued_messages_set(_MAX_QUEUED)
        self._client.on_pre_connect = self._on_pre_connect
        self._client.on_socket_open = _no_delay
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def start(self) -> None:
        self._client.connect_async(self._config.host, self._config.port, keepalive=KEEPALIVE_SECONDS)
        self._client.loop_start()

    def publish(self, channel: Up, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        if not self._client.is_connected():
            return False
        return self._publish(channel, payload, qos, retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def stop(self, timeout: float) -> None:
        if self._client.is_connected():
            info = self._publish(Up.STATE, self._presence(Presence.OFFLINE), 1, True)
            try:
                info.wait_for_publish(timeout)
            except (RuntimeError, ValueError):
                _log.debug("the connection ended before 'offline' was acknowledged")
        self._client.disconnect()
        stopper = threading.Thread(target=self._client.loop_stop, name="link-stop", daemon=True)
        stopper.start()
        # A connect that hangs in the system must not delay the end of the daemon.
        stopper.join(timeout)

    # --- paho's thread ----------------------------------------------------------------------------

    def _on_pre_connect(self, client: mqtt.Client, _userdata: Any) -> None:
        self._epoch = self._next_epoch()
        client.will_set(self._topic(Up.STATE), self._presence(Presence.LOST), qos=1, retain=True)

    def _on_connect(
        self, client: mqtt.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._failed(self._refusal(str(reason)))
            return
        client.subscribe(down_filter(self._identity.org, self._identity.device), qos=1)
        self._failures = 0
        self._said = ""
        self._publish(Up.STATE, self._presence(Presence.ONLINE), 1, True)
        _log.info("connected to the fleet", extra={"broker": self._address(), "epoch": self._epoch})
        self._listener.link_up(self._epoch)

    def _on_connect_fail(self, _client: mqtt.Client, _userdata: Any) -> None:
        # paho calls this while it handles the exception, and does not hand it over.
        cause = sys.exc_info()[1]
        if isinstance(cause, ssl.SSLCertVerificationError):
            self._failed(
                AccessError(
                    f"the certificate of {self._address()} is not trusted: {cause.verify_message}",
                    hint="Compare fleet.tls_ca and fleet.host with the certificate, and check the clock.",
                )
            )
            return
        self._failed(
            UnavailableError(
                f"no broker answers at {self._address()}: {getattr(cause, 'strerror', None) or cause}",
                hint="Check fleet.host and fleet.port, that the server runs, and the network."
                " The device goes on serving and keeps trying.",
            )
        )

    def _on_disconnect(
        self, _client: mqtt.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure and not self._said:
            self._failed(
                UnavailableError(
                    f"the connection to {self._address()} was lost: {reason}",
                    hint="The device goes on serving and keeps trying.",
                )
            )
        else:
            self._delay_next_attempt()

    def _on_message(self, client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        def done() -> None:
            client.ack(message.mid, message.qos)

        try:
            topic = parse_topic(message.topic)
        except MessageError:
            topic = None
        if isinstance(topic, DeviceDown) and topic.device == self._identity.device:
            self._listener.link_message(topic.channel, bytes(message.payload), done)
        else:
            done()

    # --- parts ------------------------------------------------------------------------------------

    def _failed(self, error: SkerryError) -> None:
        """Note a failure, say it once, and draw the time until the next attempt."""
        self._failures += 1
        self._delay_next_attempt()
        if error.message != self._said:
            self._said = error.message
            _log.warning(error.message, extra={"hint": error.hint})
            self._listener.link_down(error)

    def _delay_next_attempt(self) -> None:
        """Full jitter: anywhere below the exponential bound, so that a storm of devices spreads out."""
        most = min(self._config.reconnect_seconds, 2.0 ** min(self._failures, 10))
        delay = random.uniform(0.05, most)  # noqa: S311
        # paho takes fractions; its annotation says int.
        self._client.reconnect_delay_set(delay, delay)  # type: ignore[arg-type]

    def _refusal(self, reason: str) -> SkerryError:
        if reason in _BAD_CREDENTIALS:
            return AccessError(
                f"the broker at {self._address()} refuses this device's credentials ({reason})",
                hint="Compare fleet.username and fleet.password with what the fleet gave this device.",
            )
        return UnavailableError(
            f"the broker at {self._address()} refuses the connection: {reason}", hint="See the broker's log."
        )

    def _publish(self, channel: Up, payload: bytes, qos: int, retain: bool) -> mqtt.MQTTMessageInfo:
        return self._client.publish(self._topic(channel), payload, qos=qos, retain=retain)

    def _presence(self, state: Presence) -> bytes:
        return encode(PresenceMessage(state=state, epoch=self._epoch))

    def _topic(self, channel: Up) -> str:
        return str(DeviceUp(self._identity.org, self._identity.device, channel))

    def _address(self) -> str:
        return f"{self._config.host}:{self._config.port}"


def _no_delay(_client: mqtt.Client, _userdata: Any, sock: Any) -> None:
    """Without TCP_NODELAY small frames wait for acknowledgements: 100 times slower."""
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"fleet.tls_ca {ca_file!r} cannot be used: {error}",
            hint="It must be a PEM file of the broker's CA.",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
