"""What README and docs promise: examples run, what is named exists, the quickstart has a table."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import flm_jax
from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.contracts import Needs
from flm_jax.flow.at import At
from flm_jax.flow.combination import one_hot
from flm_jax.flow.space import SPACES
from flm_jax.flow.times import draw_stratified, stratified
from flm_jax.losses import LOSSES
from flm_jax.losses.base import Loss, PerToken
from flm_jax.samplers import SAMPLERS
from flm_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]


def example(about: str, page: str = "README.md") -> str:
    """The one Python block of the page with these words in it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (source,) = (block for block in blocks if about in block)
    return source


@pytest.mark.parametrize("space_name", SPACES)
def test_the_example_loss_runs_in_both_spaces(space_name):
    names = dict(
        dataclasses=dataclasses,
        jax=jax,
        Loss=Loss,
        Needs=Needs,
        PerToken=PerToken,
        draw_stratified=draw_stratified,
        stratified=stratified,
        one_hot=one_hot,
    )
    exec(example("class Smoothed"), names)
    loss = names["Smoothed"]()
    model, batch = tiny.model(), tiny.batch()
    net = model.net(model.init(jax.random.key(0)))
    space = SPACES[space_name]({"student": net.table})
    draws = loss.draw(jax.random.key(1), batch, space)
    loss_BL, *_ = loss.evaluate(At({"student": net}, space, tiny.clock()), batch, draws)
    # Logits are zero at the start, so every target costs ln V.
    np.testing.assert_allclose(loss_BL, jnp.full(batch.tokens_BL.shape, np.log(tiny.V)), rtol=1e-5)


@pytest.mark.parametrize("space_name", SPACES)
def test_the_jumps_of_a_flow_map_run_in_both_spaces(space_name, tmp_path, monkeypatch, capsys):
    two_times = {"model__two_times": True, "sampler__name": "flow_map"}
    config = tiny.run_config(tmp_path, space=space_name, **two_times)
    made = experiment.Experiment(config, tiny.V)
    model = flm_jax.FlowModel(made, None, tiny.params(made.model))
    monkeypatch.setattr(flm_jax, "load", lambda path: model)
    names = {}
    exec(example("model.flow_map(", "docs/method.md"), names)
    assert 0.0 < float(capsys.readouterr().out) < 2.0
    width = tiny.V if space_name == "onehot" else config.model.width
    assert names["clean"].shape == names["half_way"].shape == (4, config.data.length, width)
    assert not np.allclose(names["clean"], names["half_way"], atol=0.1)


def test_the_readme_names_every_loss_sampler_and_config():
    named = set(re.findall(r"`([\w-]+)`", (ROOT / "README.md").read_text()))
    configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
    tools = {"__init__", "common", "bench_cpu"}
    assert {*LOSSES, *SAMPLERS, *configs} - tools <= named


def test_the_map_of_the_code_is_that_of_the_tree():
    """Rooms and files named in docs/code.md exist, and every room is named."""
    text = (ROOT / "docs/code.md").read_text()
    section = text[text.index("## Rooms") : text.index("## Who may import whom")]
    named = set()
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        room, *cells = (re.findall(r"`([\w./]+)`", cell) for cell in line.split("|")[1:-1])
        named |= set(room)
        assert (ROOT / room[0]).exists(), room
        for path in cells[1]:
            assert (ROOT / room[0] / path).exists(), f"{room[0]}{path}"
    rooms = [ROOT / "configs", ROOT / "launch", ROOT / "tests"]
    for path in (ROOT / "flm_jax").iterdir():  # flm_jax.configs is configs/
        if path.suffix in ("", ".py") and path.name[:2] != "__" and path.name != "configs":
            rooms.append(path)
    paths = {path.relative_to(ROOT).as_posix() + "/" * path.is_dir() for path in rooms}
    assert paths <= named, f"docs/code.md does not name {sorted(paths - named)}"


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_what_there_is(page):
    """Links, anchors, configs, their stages and config keys; lines of prose are short."""
    text = page.read_text()
    for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            found = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in found, f"{link}#{anchor}"
    known = config_lib.to_dict(config_lib.Config())
    for section, key in re.findall(r"--config\.(\w+)(?:\.(\w+))?", text):
        assert section in known, section
        if key and section != "eval_options":  # those are the evaluators' own
            assert key in known[section], f"{section}.{key}"
    runs = re.findall(r"--config=(?:configs/)?([a-z]\w+)(?:\.py)?(:[\w,]+)?", text)
    for name, stage in set(runs):
        if name.startswith("my_"):  # the reader's
            continue
        config_lib.load(f"{ROOT}/configs/{name}.py{stage}")
    in_code = False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        table_or_code = in_code or line.startswith(("    ", "```")) or line.lstrip().startswith("|")
        assert table_or_code or len(line) <= 120, line


@pytest.mark.slow
def test_the_quickstart_ends_in_a_table_of_model_baselines_and_data(tmp_path):
    small = {"train.steps": 2, "train.batch_size": 8, "train.eval_rows": 8, "train.sample_every": 0}
    small |= {"sampler.steps": (1, 2), "sampler.num_samples": 8, "sampler.batch_size": 8}
    config = config_lib.load("configs/quickstart.py", small)
    config_lib.validate(config, experiment.tables())
    assert loop.train(config, tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    kinds = [row["kind"] for row in results["rows"]]
    assert kinds == ["model", "model", "yardstick", "yardstick", "data"]
    keys = {column["key"] for column in results["columns"]}
    assert {"words_known", "novel", "unigram_entropy", "bigram_entropy"} <= keys
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
