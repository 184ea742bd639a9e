"""HTML of the pages, and the Content-Security-Policy that fits them.

No page has a script. The one style sheet is inline and allowed by its hash alone; whatever a device or an
engineer named ends up as inert text, because every template escapes.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .overview import Overview

REFRESH_S: Final = 3

_TEMPLATES: Final = Path(__file__).parent / "templates"
_STYLE: Final = (_TEMPLATES / "style.css").read_text()

_environment = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def content_security_policy() -> str:
    """Nothing is loaded from anywhere, nothing runs, nobody frames the page."""
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def overview_page(overview: Overview) -> str:
    return _environment.get_template("overview.html").render(o=overview, style=_STYLE, refresh_s=REFRESH_S)


def sign_in_page(*, refused: bool) -> str:
    return _environment.get_template("sign_in.html").render(style=_STYLE, refused=refused)
