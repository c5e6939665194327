"""What a person is shown, read back for tests: rows of tables, drawings and their texts, the size of an event."""

import re
from urllib.parse import unquote
from xml.etree import ElementTree

import dagster as dg
from dagster._serdes import serialize_value

WINDOW = "2025-01-15T10:00"
NASTY = "<img src=x onerror='1'> | `x` ](http://x) \n\n# head\x00 $& %41 \"q\" 'q' " + "long " * 200


def records(value: dg.TableMetadataValue) -> list[dict]:
    return [dict(record.data) for record in value.records]


def size(metadata: dict) -> int:
    event = dg.AssetMaterialization("windows", partition=WINDOW, metadata=metadata)
    return len(serialize_value(event))


def image(value: dg.MarkdownMetadataValue) -> tuple[str, ElementTree.Element]:
    """Title and drawing of a plot, read as a browser reads them: one image and nothing beside it."""
    title, source = re.fullmatch(r"!\[([^\[\]]*)\]\(<data:image/svg\+xml;utf8,([^<>\n]*)>\)", value.value).groups()
    return title, ElementTree.fromstring(unquote(source))


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def images(metadata: dict) -> list[str]:
    return [name for name, v in metadata.items() if isinstance(v, dg.MarkdownMetadataValue) and "data:" in v.value]
