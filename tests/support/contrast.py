"""Contrast of what a page shows, by WCAG 2: (L1 + 0.05) / (L2 + 0.05) of text and what is behind it."""

from __future__ import annotations

from typing import Any

from tests.support.browser import Page

LEAST = 4.5  # level AA, text of usual size
_FIND = """(() => {
  const colour = (text) => {
    const numbers = text.match(/[\\d.]+(e[-+]?\\d+)?/g).map(Number);
    const scale = text.startsWith("color(srgb") ? 255 : 1;
    return [...numbers.slice(0, 3).map((value) => value * scale), numbers[3] ?? 1];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, at) => value * a + under[at] * (1 - a));
  const behind = (element) => {
    const own = colour(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const light = (rgb) => rgb.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const contrast = (element, pseudo) => {
    const back = behind(element);
    const [a, b] = [light(over(colour(getComputedStyle(element, pseudo).color), back)), light(back)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility()) continue;
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (says || element.value) found.push([contrast(element), element.outerHTML.slice(0, 200)]);
    if (element.placeholder) found.push([contrast(element, "::placeholder"), "placeholder: " + element.placeholder]);
  }
  return found.sort(([a], [b]) => a - b);
})()"""


def contrasts(page: Page) -> list[tuple[float, str]]:
    """Of each text in sight, the least first, with its element."""
    found: list[list[Any]] = page.evaluate(_FIND)
    return [(contrast, element) for contrast, element in found]
