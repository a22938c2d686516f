"""The page in a real browser: what pointer, keys and fingers bring up is there to be seen, and nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, Page, opened
from tests.support.contrast import LEAST, contrasts
from tests.support.explained import HOSTILE, Explained

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

HINT = "Point at a token or tap it"
SIZES = {"desktop": (1280, 800), "tablet": (800, 1000), "phone": (360, 640)}


@pytest.fixture(scope="module")
def file(explained: Explained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(explained.page(), encoding="utf-8")
    return file


def token(place: int) -> str:
    return f"#reply .t:nth-of-type({place + 1})"


def panel(page: Page) -> str:
    text: str = page.evaluate("document.getElementById('panel').innerText")
    return text


def is_seen(page: Page, selector: str) -> bool:
    """Whether the middle of an element is inside the window, with nothing on top of it."""
    seen: bool = page.evaluate(
        f"""(() => {{
            const element = document.querySelector({selector!r});
            const box = element.getBoundingClientRect();
            const inside = box.x >= 0 && box.y >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
            const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
            return inside && element.contains(top);
        }})()"""
    )
    return seen


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pointing_at_a_token_shows_its_candidates(file: Path, tmp_path: Path, size: str, dark: bool) -> None:
    width, height = SIZES[size]
    with opened(file.as_uri(), tmp_path / "profile", width=width, height=height, dark=dark) as page:
        assert HINT in panel(page)
        page.point_at(token(1))
        shown = panel(page)
        assert HINT not in shown
        assert '" egg"' in shown
        assert 'The base alone would have chosen "</script>".' in shown
        rows = page.evaluate("[...document.querySelectorAll('#panel tr')].map((row) => row.cells.length)")
        assert rows == [6] * 5  # the head and four candidates
        assert is_seen(page, "#panel h3")
        assert is_seen(page, "#panel tr.chosen")
        assert is_seen(page, token(1))
        assert contrasts(page)[0][0] >= LEAST, contrasts(page)[0]
        page.point_at(token(2))
        assert "The base alone" not in panel(page)
        page.point_at("h1")
        assert HINT in panel(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 248)") != dark
        assert page.requests == [file.as_uri()]
        assert page.faults == []


def test_the_keyboard_alone(file: Path, tmp_path: Path) -> None:
    """Tab comes to the reply, arrows go through it, Escape leaves it."""
    with opened(file.as_uri(), tmp_path / "profile") as page:
        last = page.evaluate("document.querySelectorAll('#reply .t').length") - 1
        for key, code, place in (
            ("Tab", 9, 0),
            ("ArrowLeft", 37, 0),
            ("ArrowRight", 39, 1),
            ("ArrowDown", 40, 2),
            ("ArrowUp", 38, 1),
            ("End", 35, last),
            ("ArrowRight", 39, last),
            ("Home", 36, 0),
        ):
            page.press(key, code)
            at = page.evaluate("[...document.querySelectorAll('#reply .t')].indexOf(document.activeElement)")
            assert at == place
            named = page.evaluate(f"JSON.stringify(data[{place}].candidates[data[{place}].chosen][0])")
            assert panel(page).startswith(named)
            assert is_seen(page, "#panel h3")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.press("Escape", 27)
        assert HINT in panel(page)
        assert page.faults == []


def test_a_tap_holds_a_token(file: Path, tmp_path: Path) -> None:
    """On a phone the panel comes up below, and the token stays above it."""
    with opened(file.as_uri(), tmp_path / "profile", width=360, height=640) as page:
        last = page.evaluate("document.querySelectorAll('#reply .t').length") - 1
        x, y = page.evaluate(
            f"""(() => {{
                const element = document.querySelector({token(last)!r});
                scrollBy(0, element.getBoundingClientRect().y - 0.75 * innerHeight);
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        assert y > 0.5 * page.evaluate("innerHeight"), "where the panel will be"
        page.tap(x, y)
        page.wait_for("document.activeElement !== document.body")
        assert panel(page).startswith('"</s>"')
        assert is_seen(page, token(last))
        assert is_seen(page, "#panel h3")


def test_texts_stay_texts(file: Path, tmp_path: Path) -> None:
    """A script, an image or a template's braces in a prompt, a preference or a reply do nothing."""
    with opened(file.as_uri(), tmp_path / "profile") as page:
        assert page.evaluate("typeof hit") == "undefined"
        assert page.evaluate("document.querySelectorAll('img, #reply b, i').length") == 0
        assert page.evaluate("document.querySelectorAll('.said')[1].innerText") == HOSTILE
        page.point_at(token(2))
        assert panel(page).startswith('"</script>"')
        assert page.faults == []


def test_what_must_not_pass_is_noticed(file: Path, tmp_path: Path) -> None:
    """Controls: an image is loaded, or stopped by the policy; the panel is out of sight; colours are too strong."""
    source = file.read_text(encoding="utf-8")
    image = '<img src="http://127.0.0.1:9/x.png"></body>'
    wrong = tmp_path / "wrong.html"
    wrong.write_text(source.replace("</body>", image), encoding="utf-8")
    with opened(wrong.as_uri(), tmp_path / "stopped") as page:
        page.evaluate("new Promise((done) => setTimeout(done, 200))")
        assert any("Content Security Policy" in fault for fault in page.faults)
    wrong.write_text(source.replace("default-src 'none'", "img-src *").replace("</body>", image), encoding="utf-8")
    with opened(wrong.as_uri(), tmp_path / "loaded") as page:
        assert "http://127.0.0.1:9/x.png" in page.requests
    wrong.write_text(source.replace("</style>", "#panel { position: absolute; top: -900px }</style>"), encoding="utf-8")
    with opened(wrong.as_uri(), tmp_path / "hidden") as page:
        page.point_at(token(1))
        assert not is_seen(page, "#panel h3")
    wrong.write_text(source.replace("--full: .5", "--full: .6"), encoding="utf-8")
    with opened(wrong.as_uri(), tmp_path / "strong", dark=True) as page:
        assert contrasts(page)[0][0] < LEAST
