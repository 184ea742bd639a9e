"""TFLite models for the packager: reading and writing the file, its facts, its memory, its first load."""

from __future__ import annotations
