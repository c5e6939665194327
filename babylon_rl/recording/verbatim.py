"""JSON for columns of text and for files, from which each text comes back as it was."""

import json
import re
from typing import Any

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def verbatim_json(value: Any) -> str:
    """JSON for a column of text, keys sorted, from which each text comes back as it was.

    What PostgreSQL keeps in no text, NUL and half of a surrogate pair, stands as an escape, as JavaScript writes it.
    ValueError for NaN and infinity, which JSON lacks.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
