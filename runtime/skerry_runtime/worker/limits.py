"""Every limit of a serving worker as a named number with its unit."""

from __future__ import annotations

from dataclasses import dataclass

from skerry_contract.limits import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLimits:
    """Chosen for a board of 512 MB; a test makes them smaller."""

    unix_connections: int = 64
    """At once on Unix sockets, a thread each; one more takes an idle one's place or is answered 503."""
    tcp_connections: int = 32
    """The same for TCP, whose clients are strangers until their first head is whole."""
    spare_s: float = 1.0
    """A connection that waited longer than this for a request may lose its place to a new one."""
    shared_clients: int = 16
    """Clients of shared memory at once, among those on Unix sockets; one more is answered 503."""
    shared_bytes: int = 64 * MIB
    """Of all memory that is shared with clients; beyond it 503."""
    waiting: int = 32
    """Requests that may wait for the engine; one more is answered 503."""
    wait_s: float = 5.0
    """The longest that a request waits for the engine before it is answered 503."""
    inference_s: float = 30.0
    """The longest deadline of an inference; most models have a shorter one, see `deadline`."""
    head_bytes: int = 16 * KIB
    """Request line and headers."""
    body_bytes: int = 32 * MIB
    """Of one request."""
    bodies_bytes: int = 64 * MIB
    """Of all requests at once; beyond it 503."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its headers, on a Unix socket."""
    tcp_head_s: float = 3.0
    """The same on TCP."""
    body_s: float = 30.0
    """From the end of the headers to the end of the body."""
    idle_s: float = 120.0
    """Between two requests on one connection."""
    write_s: float = 30.0
    """For the client to take a piece of its answer."""
    farewells: int = 64
    """Refused clients of one kind that may still send, so that they come to read why; the oldest is cut."""
    farewell_s: float = 5.0
    """The longest that a refused client may still send."""
    farewell_bytes: int = 64 * MIB
    """The most that is thrown away of what a refused client still sends."""
    linger_s: float = 10.0
    """After the deadline of a drain, for what is still in flight."""
    canary_s: float = 5.0
    """Between two golden samples beside the traffic."""

    @property
    def connections(self) -> int:
        """Of all kinds at once: the threads to have room for."""
        return self.unix_connections + self.tcp_connections


DEFAULT_SERVE_LIMITS = ServeLimits()
