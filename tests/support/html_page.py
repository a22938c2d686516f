"""An HTML page taken apart: elements with their attributes and texts, with no browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = ("meta", "link", "img", "br", "input", "hr", "source", "base", "embed")


@dataclass
class Element:
    """One element.

    Attributes:
        name, attributes: as they are written.
        text: of itself and of all inside it.
    """

    name: str
    attributes: dict[str, str]
    text: str = ""

    def has_class(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()


@dataclass
class HtmlPage:
    """The elements of a page, in order."""

    elements: list[Element] = field(default_factory=list)

    @classmethod
    def parse(cls, source: str) -> HtmlPage:
        """Take a page apart; an element that is not closed, or closed twice, is an error."""
        reader = _Reader()
        reader.feed(source)
        reader.close()
        assert not reader.open, reader.open
        return cls(reader.elements)

    def find(self, name: str = "", *, css_class: str = "", **attributes: str) -> list[Element]:
        return [
            element
            for element in self.elements
            if name in ("", element.name)
            and (not css_class or element.has_class(css_class))
            and attributes.items() <= element.attributes.items()
        ]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag, tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data
