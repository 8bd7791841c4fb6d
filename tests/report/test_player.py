"""The player of the denoising strip in a browser: its slider, its button, its colours."""

import pytest
from browser import Page

from flm_jax.report import page, strip

pytestmark = pytest.mark.slow
FRAMES = 20


def test_the_strip_plays(tmp_path):
    frames = [
        {"tau": i / FRAMES, "t": 0.5, "sequences": [[("▁the", i / FRAMES), (f"<b>{i}", 0.05)]]}
        for i in range(FRAMES)
    ]
    html = page.document("a run", "", [], strip.strip({"frames": frames}))
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    browser = Page()
    try:
        browser.screen(360)
        browser.driver.get((tmp_path / "report.html").as_uri())
        stage, slider = ".stage .tokens", "document.querySelector('.player input')"
        assert browser.text(stage) == " the<b>19"
        assert browser.text(".player output") == "19 · τ 0.95 · t 0.5"
        assert browser.run("return document.querySelector('.stage i').className") == "c9"
        browser.run(f"{slider}.value = 3; {slider}.dispatchEvent(new Event('input'))")
        assert browser.text(stage) == " the<b>3"
        browser.run("document.querySelector('.player button').click()")
        assert browser.text(".player button") == "pause"
        browser.wait(lambda: browser.text(stage) == " the<b>19", "it does not play")
        browser.wait(lambda: browser.text(".player button") == "play", "it does not stop")
        assert browser.run("return document.documentElement.scrollWidth") == 360
        assert browser.logs() == []
    finally:
        browser.driver.quit()
