"""Lists in one word."""

from __future__ import annotations

import re


def split(text: str | None) -> list[str]:
    """The parts between commas, but for those inside brackets."""
    parts = re.findall(r"(?:\([^()]*\)|[^,])+", text or "")
    return [part.strip() for part in parts if part.strip()]
