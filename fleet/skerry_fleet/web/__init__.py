"""Pages for people, rendered on the server, without a script."""

from __future__ import annotations
