"""The evidence of a packaging run, drawn: as one self-contained HTML page, and as text for a terminal.

Both are made from the document that `skerry_packager.runlog.document` gives, which is also what the log
gives back: a report of today and one of an old run are made by the same code.
"""

from __future__ import annotations

from .page import render_html
from .text import render_text

__all__ = ["render_html", "render_text"]
