"""The page in a browser: one step, the sliders, infilling, prompts, a phone, the dark, pictures."""

import base64
import xml.etree.ElementTree

import pytest
import untrained
from browser import Page, served

from flm_jax import inference
from flm_jax.demo import folder

pytestmark = pytest.mark.slow
LENGTH = 12


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a page: a denoiser that takes given tokens, a flow map that does not, AR."""
    place = tmp_path_factory.mktemp("page")
    given = {"given": "uniform"}
    runs = [
        untrained.of_loss(place, "flow_matching", "euler", given),
        untrained.of_loss(place, "psd", "flow_map"),
        untrained.of_loss(place, "autoregressive", "autoregressive", sampler__steps=(11,)),
    ]
    folder.write([(run.name, inference.load(run)) for run in runs], place / "site" / "page")
    return place / "site"


@pytest.fixture(scope="module")
def browser():
    page = Page()
    yield page
    page.driver.quit()


@pytest.fixture
def page(browser, written):
    """The page, as it is below another folder of a static host."""
    with served(written) as address:
        browser.screen()
        browser.open(f"{address}page/")
        yield browser
        assert browser.logs() == []
        assert browser.run("return document.querySelectorAll('article').length") == 3


def test_one_step(page):
    page.set("steps", 1)
    assert page.timing(0).startswith("1 evaluation, ") and page.timing(1).startswith(
        "1 evaluation, "
    )
    assert page.timing(2).startswith("11 evaluations, ") and "token by token" in page.timing(2)
    assert [len(page.tokens(i)) for i in range(3)] == [LENGTH] * 3
    assert "." in page.run("return document.querySelector('.tokens i').title")


def test_nothing_is_asked_of_another_host(browser, written):
    with served(written) as address:
        browser.requests()
        browser.open(f"{address}page/")
        asked = browser.requests()
    assert len(asked) > 10  # the worker's are not among them: test_command.py reads its files
    others = [url for url in asked if not url.startswith((address, "data:"))]
    assert others == []


def test_the_slider_goes_through_the_path(page):
    page.set("steps", 5)
    assert page.timing(0).startswith("5 evaluations, ")
    slider = "document.querySelector('article input[type=range]')"
    assert page.run(f"return [{slider}.max, {slider}.value]") == ["4", "4"]
    last = page.tokens()
    page.run(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    assert page.text("article output").startswith("1 · ") and page.tokens() != last
    page.click("article .bar button")
    page.wait(lambda: page.run(f"return {slider}.value === '4'"), "it does not play")
    assert page.tokens() == last


def test_ways_differ_and_seeds_repeat(page):
    page.set("steps", 6)
    found = {}
    for way in ("rounds", "flow", "fresh"):
        page.run("document.getElementById('way').value = arguments[0]", way)
        page.click("#write")
        found[way] = page.tokens()
    assert len({"".join(tokens) for tokens in found.values()}) == 3
    page.click("#write")
    assert page.tokens() == found["fresh"]
    page.click("#again")
    assert page.tokens() != found["fresh"]


def test_a_beginning_is_typed(page):
    page.run("document.getElementById('prompt').value = 'red cat'")
    page.click("#write")
    assert "".join(page.tokens(0)).startswith("¶red cat")
    assert "takes no beginning" in page.timing(1)
    assert "".join(page.tokens(2)).startswith("¶red cat")
    page.run("document.getElementById('prompt').value = 'red cat dog sun'")
    page.click("#write")
    assert "has 16 tokens, but a text has 12" in page.timing(0)


def test_tokens_are_kept_and_the_rest_is_filled(page):
    fill = "return document.getElementById('fill').disabled"
    assert page.run(fill)
    kept = [3, 4, 8]
    for at in kept:
        page.click("article:nth-of-type(1) .tokens i", at)
    before = page.tokens()
    assert page.tokens(css="i.kept") == [before[at] for at in kept] and not page.run(fill)
    changed = False
    for _ in range(4):
        page.click("#fill")
        after = page.tokens()
        assert [after[at] for at in kept] == [before[at] for at in kept]
        changed |= after != before
    assert changed and len(page.tokens(css="i.kept")) == 3
    page.click("article:nth-of-type(1) [data-do=none]")
    assert page.tokens(css="i.kept") == []


def test_keys_keep_a_token_and_another_press_lets_it_go(page):
    press = (
        "const token = document.querySelectorAll('article .tokens i')[2]; token.focus();"
        "token.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));"
        "return document.querySelectorAll('article .tokens i')[2].ariaPressed"
    )
    assert [page.run(press), page.run(press)] == ["true", "false"]


def test_the_left_to_right_model_keeps_only_a_beginning(page):
    page.click("article:nth-of-type(3) .tokens i", 5)
    page.click("#fill")
    assert "only a beginning can be kept" in page.timing(2)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_in_the_light_and_in_the_dark(page, dark):
    page.screen(360, dark)
    page.settle()
    assert page.run("return document.documentElement.scrollWidth") == 360
    wide = "(n) => n.getBoundingClientRect().right > 360"
    found = f"[...document.querySelectorAll('main *')].filter({wide})"
    assert page.run(f"return {found}.map((n) => n.outerHTML)") == []
    red = (
        page.run("return getComputedStyle(document.body).backgroundColor")
        .strip("rgb(")
        .split(",")[0]
    )
    assert (int(red) < 60) is dark


def test_pictures(page):
    page.set("steps", 4)
    taken = page.driver.execute_async_script("""
      const done = arguments[0], found = [];
      URL.createObjectURL = (blob) => { found.push(blob); return "data:,"; };
      HTMLAnchorElement.prototype.click = () => {};
      for (const kind of ["svg", "gif"]) document.querySelector(`[data-do=${kind}]`).click();
      Promise.all(found.map(async (blob) => {
        const bytes = new Uint8Array(await blob.arrayBuffer());
        return [blob.type, btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""))];
      })).then(done);""")
    (svg_type, svg), (gif_type, gif) = [(kind, base64.b64decode(data)) for kind, data in taken]
    assert (svg_type, gif_type) == ("image/svg+xml", "image/gif")
    root = xml.etree.ElementTree.fromstring(svg)
    shown = "".join(root.itertext())
    assert "flow_matching · 4 evaluations" in shown
    assert len(root.findall("{*}rect")) == 1 + 4 * LENGTH
    assert gif[:6] == b"GIF89a" and gif[-1:] == b"\x3b"
    assert gif.count(b"\x21\xf9\x04") == 4  # the beginning of a frame


def test_what_is_missing_is_said(browser, written, tmp_path):
    import shutil

    broken = shutil.copytree(written / "page", tmp_path / "page")
    (broken / "model2" / "model.safetensors").unlink()
    with served(tmp_path) as address:
        browser.driver.get(f"{address}page/")
        said = "return document.body.textContent.includes('The page cannot start')"
        browser.wait(lambda: browser.run(said), "nothing is said")
        text = browser.text("body")
    assert "model2/model.safetensors is missing (404); write the folder again" in text
    browser.logs()
