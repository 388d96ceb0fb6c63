"""A YAML file of settings, as names and text."""

from __future__ import annotations

import os
from typing import Any

from .errors import UserError

MOST_ITEMS = 100_000  # what aliases stand for counted


def read_yaml(path: str) -> dict[str, Any]:
    """What the file says: names, with text, lists or mappings of text; UserError where it is none such."""
    import yaml

    if not os.path.isfile(path):
        raise UserError(f"--config {path}: there is no such file")
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=yaml.BaseLoader)  # text only: YAML reads -1:1:51 as a number of seconds
        if _items(content) > MOST_ITEMS:
            raise UserError(f"--config {path}: holds more than {MOST_ITEMS} items")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"--config {path}: lists or mappings in it are nested too deeply") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"--config {path}: expected 'name: value' lines")
    return content or {}


def _items(content: object, found: int = 0) -> int:
    """How many values there are, aliases followed; counts no further than just beyond MOST_ITEMS."""
    found += 1
    if isinstance(content, (list, dict)) and found <= MOST_ITEMS:
        for item in content.values() if isinstance(content, dict) else content:
            found = _items(item, found)
            if found > MOST_ITEMS:
                break
    return found
