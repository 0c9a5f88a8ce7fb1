"""The bytes of an XMP sidecar.

Source: XMP specification part 1 (ISO 16684-1:2019), 7.3, 7.4 and 8.3.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree

from serve_app.terminal.printable import HIDDEN

SUFFIX = ".xmp"
TOOL = "siglip-serve"
NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
}
PACKET_ID = "W5M0MpCehiHzreSzNTczkc9d"
"""The same in every packet."""
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot contain."""


def xmp_packet(labels: Sequence[str]) -> bytes:
    """Return the bytes of a sidecar with labels as `dc:subject`, the best one first."""
    for prefix, uri in NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    meta = ElementTree.Element(_name("x", "xmpmeta"))
    rdf = ElementTree.SubElement(meta, _name("rdf", "RDF"))
    attributes = {
        _name("rdf", "about"): "",
        _name("xmp", "CreatorTool"): TOOL,
        _name("xmp", "MetadataDate"): datetime.now(UTC).isoformat(timespec="seconds"),
    }
    description = ElementTree.SubElement(rdf, _name("rdf", "Description"), attributes)
    subject = ElementTree.SubElement(description, _name("dc", "subject"))
    bag = ElementTree.SubElement(subject, _name("rdf", "Bag"))
    for label in labels:
        item = ElementTree.SubElement(bag, _name("rdf", "li"))
        item.text = NOT_XML.sub("", HIDDEN.sub("", label))

    ElementTree.indent(meta)
    body = ElementTree.tostring(meta, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="{PACKET_ID}"?>\n{body}\n<?xpacket end="w"?>\n'.encode()


def is_ours(data: bytes) -> bool:
    """Return whether this program has written a sidecar."""
    return f'CreatorTool="{TOOL}"'.encode() in data


def _name(prefix: str, name: str) -> str:
    return f"{{{NAMESPACES[prefix]}}}{name}"
