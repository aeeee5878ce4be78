"""The attack explorer: what is exported, that what it teaches is so, and the page in a browser against the library."""

import base64
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from hpatlib import attacks, cli, export, measure, models
from hpatlib.data import load
from hpatlib.hybrid import environment, fixed, perturb, random_noise
from hpatlib.spatial import Box, grid_search, transform
from hpatlib.stbo import stbo
from hpatlib.training import Recipe

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "book" / "_static" / "explorer"
PAGE = FOLDER / "index.html"
NARROW, WIDE = Box(3, 30), environment(6, size=export.SIZE).box


def told(folder: Path) -> dict:
    return json.loads(re.fullmatch(r"const EXPLORER = (.*);\n", (folder / export.NAME).read_text("utf-8"))[1])


def unpacked(text: str, dtype: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).astype(np.float64)).view(*shape)


class Told(nn.Module):
    """A network as it was exported, in PyTorch: read here independently of how it was written."""

    def __init__(self, layers: list[dict]) -> None:
        super().__init__()
        self.layers = []
        for layer in layers:
            own = dict(layer)
            if "shape" in own:
                own["weight"] = unpacked(own["weight"], "<f2", *own["shape"])
                own["bias"] = unpacked(own["bias"], "<f2", own["shape"][0])
            self.layers.append(own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            kind = layer["kind"]
            if kind == "scale":
                x = (x - layer["mean"]) / layer["std"]
            elif kind == "conv":
                x = F.conv2d(x, layer["weight"], layer["bias"], padding=1)
            elif kind == "relu":
                x = x.clamp(min=0)
            elif kind == "pool":
                x = F.max_pool2d(x, 2)
            elif kind == "linear":
                x = F.linear(x.flatten(1), layer["weight"], layer["bias"])
            else:
                x = torch.tensor(layer["logits"], dtype=x.dtype) + 0 * x.flatten(1)[:, :2]
        return x


@pytest.fixture(scope="module")
def data() -> dict:
    return told(FOLDER)


@pytest.fixture(scope="module")
def networks(data) -> dict[str, Told]:
    return {name: Told(network["layers"]) for name, network in data["networks"].items()}


@pytest.fixture(scope="module")
def phantoms(data) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor(data["phantoms"]["labels"])
    size = data["size"]
    return unpacked(data["phantoms"]["pixels"], "u1", len(labels), 3, size, size) / 255, labels


# The export.


def test_a_rounded_network_answers_as_the_trained_one():
    torch.manual_seed(0)
    model = models.build("simple_cnn_bn", 2, weights="scratch")
    images = load("cnmc", real=False, size=32, count=24)
    x, _ = images.tensors()
    model.train()
    model(x)  # batch norms that have something to fold
    model.eval()
    with torch.no_grad():
        scale = model(x).abs().max()
        again = Told(list(export.layers(export.rounded(model, images))))(x.double())
        assert (again - model(x)).abs().max() < 2e-3 * scale


@pytest.mark.parametrize(
    "network, found",
    [
        (nn.Linear(3, 2), "Linear"),
        (models.Normalized(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2)), (0.5,) * 3, (0.5,) * 3), "Conv2d"),
        (models.Normalized(nn.Sequential(nn.Conv2d(3, 4, 3)), (0.5,) * 3, (0.5,) * 3), "Conv2d"),
        (models.Normalized(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2)), (0.5,) * 3, (0.5,) * 3), "Conv2d"),
        (models.Normalized(nn.Sequential(nn.Tanh()), (0.5,) * 3, (0.5,) * 3), "Tanh"),
        (models.Normalized(nn.Sequential(nn.ReLU()), (0.4, 0.5, 0.6), (0.5,) * 3), "Normalized"),
    ],
)
def test_a_layer_that_the_page_lacks_is_refused(network, found):
    with pytest.raises(ValueError, match=found):
        list(export.layers(network))


@pytest.fixture
def quick(home, monkeypatch):
    """An export of networks that have hardly been trained."""
    recipe = Recipe(epochs=1, batch_size=32)
    monkeypatch.setattr(export, "STANDARD", export.replace(export.STANDARD, count=144, recipe=recipe))
    monkeypatch.setattr(export, "COMPETENT", 0.0)


def test_export_writes_the_same_each_time(quick, tmp_path):
    result = CliRunner().invoke(cli.app, ["export", "--output", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    export.explorer(tmp_path / "b")
    names = {export.NAME, export.ANSWERS, export.SEARCHES}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    fresh = told(tmp_path / "a")
    assert np.bincount(fresh["phantoms"]["labels"]).tolist() == [export.EACH, export.EACH]
    assert told(FOLDER).keys() == fresh.keys(), "the committed file is of another form: run hpat export"


def test_an_incompetent_network_is_not_exported(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "COMPETENT", 1.01)
    with pytest.raises(ValueError, match="right on"):
        export.explorer(tmp_path)
    assert not list(tmp_path.iterdir())


# What is committed.


def test_the_committed_networks_are_competent_and_answer_as_told(data, networks, phantoms):
    images, labels = phantoms
    for name in ("standard", "hybrid"):
        answers = measure.logits(networks[name], images)
        assert torch.allclose(answers, torch.tensor(data["check"]["logits"][name], dtype=torch.float64), atol=1e-9)
        assert data["networks"][name]["accuracy"] >= export.COMPETENT
        assert (answers.argmax(dim=1) == labels).double().mean() >= export.COMPETENT
        slope = attacks.gradient(networks[name], images[:1], labels[:1])[0]
        assert torch.allclose(slope, unpacked(data["check"]["gradient"][name], "<f4", *slope.shape), atol=1e-6)


def test_the_page_weighs_less_than_a_megabyte():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1e6


def test_what_the_five_questions_teach_is_so(networks, phantoms):
    """On all 24 phantoms, each network attacked itself, by the library."""
    images, labels = phantoms
    clean = {name: measure.logits(network, images).argmax(dim=1) for name, network in networks.items()}

    def answers(name, **parts):
        return measure.logits(networks[name], perturb(networks[name], images, labels, **parts)).argmax(dim=1)

    def accuracy(name, **parts):
        return (answers(name, **parts) == labels).double().mean().item()

    def pgd(eps, steps=6):
        return partial(attacks.pgd, eps=eps / 255, step=1 / 255, iterations=steps, start=None)

    # 1: random noise, even four times as large, hardly changes an answer; PGD changes most, fewer after training on it.
    for name in ("standard", "hybrid"):
        noise = partial(random_noise, eps=8 / 255, generator=torch.Generator().manual_seed(0))
        assert (answers(name, pixel=noise) == clean[name]).double().mean() >= 0.9
    assert accuracy("standard", pixel=pgd(2)) <= 0.25
    assert accuracy("hybrid", pixel=pgd(2)) >= accuracy("standard", pixel=pgd(2)) + 0.4
    # 2: a turn after the noise repairs most answers; noise made for the turned cell breaks them again.
    turn = partial(fixed, s=(0.0, 0.0, 30.0))
    assert accuracy("standard", pixel=pgd(4)) <= 0.1
    assert accuracy("standard", pixel=pgd(4), spatial=turn) >= 0.7
    turned = turn(networks["standard"], images, labels)
    again = measure.logits(networks["standard"], pgd(4)(networks["standard"], turned, labels)).argmax(dim=1)
    assert (again == labels).double().mean() <= 0.1
    # 3: more queries find a higher loss, STBO the highest with about as many; another range, another loss.
    draws = torch.Generator().manual_seed(0)
    search = partial(grid_search, networks["standard"], images, labels)
    nine, many = search(NARROW, counts=(1, 1, 9)).loss, search(NARROW, counts=(3, 3, 11)).loss
    learned = stbo(networks["standard"], images, labels, NARROW, generator=draws).loss
    far = stbo(networks["standard"], images, labels, WIDE, generator=draws).loss
    assert nine.mean() < many.mean() < learned.mean() and (far.mean() - learned.mean()).abs() > 0.2
    # 4: the constant network: a perfect ROI and the accuracy of a coin; the others lose more ROI.
    assert (answers("constant", pixel=pgd(8, 8)) == clean["constant"]).all() and accuracy("constant") == 0.5
    for name in ("standard", "hybrid"):
        assert (answers(name, pixel=pgd(8, 8)) == clean[name]).double().mean() < 0.5
    # 5: with two classes, noise for one label is the negative of that for the other, and helps.
    fgsm = partial(attacks.fgsm, networks["standard"], eps=2 / 255)
    inside = (images > 2 / 255) & (images < 1 - 2 / 255)
    true, wrong = fgsm(images, labels) - images, fgsm(images, 1 - labels) - images
    assert torch.allclose(true[inside], -wrong[inside], atol=1e-12)
    assert accuracy("standard", pixel=lambda model, x, y: fgsm(x, 1 - y)) >= accuracy("standard")


# The page in a browser, from its file.


@pytest.fixture
def opened(browser):
    """Opens the page at a hash; fails afterwards where a script failed or a request left the folder."""
    faults, contexts = [], []

    def open_(hash_: str = "", **context):
        tab = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        contexts.append(tab)

        def local_only(route):
            if route.request.url.startswith((FOLDER.as_uri(), "data:", "blob:")):
                route.continue_()
            else:
                faults.append(f"asked for {route.request.url}")
                route.abort()

        tab.route("**/*", local_only)
        page = tab.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("console", lambda said: faults.append(f"console: {said.text}") if said.type == "error" else None)
        page.goto(PAGE.as_uri() + hash_)
        page.wait_for_function("document.documentElement.dataset.checked")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def engine(browser):
    page = browser.new_page()
    page.goto(PAGE.as_uri())
    page.evaluate("() => { window.engine = explorerEngine(EXPLORER); }")
    yield page
    page.close()


def test_logits_and_gradients_are_pytorchs(engine, networks, phantoms):
    images, labels = phantoms
    ask = """name => engine.phantoms.map((x, n) =>
        [engine.logits(name, x), Array.from(engine.gradient(name, x, engine.labels[n]))])"""
    for name, network in networks.items():
        answers, slopes = zip(*engine.evaluate(ask, name), strict=True)
        assert torch.allclose(torch.tensor(answers).double(), measure.logits(network, images), atol=1e-9)
        expected = attacks.gradient(network, images, labels).flatten(1)
        assert torch.allclose(torch.tensor(slopes, dtype=torch.float64), expected, atol=1e-9)


@pytest.mark.parametrize("start", [None, "uniform"])
def test_pgd_is_the_librarys_to_one_grey_level(engine, networks, phantoms, start):
    images, labels = phantoms
    images, labels = images[:6], labels[:6]
    settings = {"eps": 4 / 255, "step": 1 / 255, "iterations": 6}
    generator = torch.Generator().manual_seed(3)
    expected = attacks.pgd(networks["hybrid"], images, labels, **settings, start=start, generator=generator)
    first = images if start is None else attacks.noisy(images, 4 / 255, torch.Generator().manual_seed(3))
    ask = """([start, settings]) => start.map((x, n) => Array.from(engine.ascend(
        "hybrid", engine.phantoms[n], engine.labels[n], {...settings, start: Float64Array.from(x)})))"""
    found = torch.tensor(engine.evaluate(ask, [first.flatten(1).tolist(), settings]), dtype=torch.float64)
    apart = (found - expected.flatten(1)).abs()
    assert apart.max() <= 1 / 255 + 1e-9 and (apart > 1e-9).double().mean() < 1e-3


def test_fgsm_is_the_librarys(engine, networks, phantoms):
    images, labels = phantoms
    expected = attacks.fgsm(networks["standard"], images[:4], labels[:4], eps=2 / 255).flatten(1)
    ask = """[0, 1, 2, 3].map(n => Array.from(engine.perturb(
        "standard", engine.phantoms[n], engine.labels[n], {kind: "fgsm", eps: 2}, null).image))"""
    assert torch.allclose(torch.tensor(engine.evaluate(ask), dtype=torch.float64), expected, atol=1e-12)


@pytest.mark.parametrize("s", [(0, 0, 30), (2, -1, 0), (1.3, 0.7, -77.5), (-2.56, 2.56, 180), (0, 0, 90)])
def test_the_warp_is_the_librarys(engine, phantoms, s):
    image = phantoms[0][5:6]
    expected = transform(image, torch.tensor([s], dtype=torch.float64)).flatten()
    found = torch.tensor(engine.evaluate("s => Array.from(engine.warp(engine.phantoms[5], s))", list(s))).double()
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("box", [NARROW, WIDE], ids=["narrow", "wide"])
def test_the_grid_is_the_librarys(engine, networks, phantoms, box):
    images, labels = phantoms
    expected = grid_search(networks["standard"], images[4:5], labels[4:5], box, counts=(3, 3, 11))
    ask = """box => { const found = engine.search("standard", engine.phantoms[4], engine.labels[4], box);
        for (const _ of engine.strategy("grid99", found, box, null)); return [found.s, found.history]; }"""
    s, history = engine.evaluate(ask, {"translation": box.translation, "rotation": box.rotation})
    assert torch.allclose(torch.tensor(history, dtype=torch.float64), expected.history[0], atol=1e-5)
    assert s == pytest.approx(expected.s[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("box", [NARROW, WIDE], ids=["narrow", "wide"])
def test_stbo_is_the_librarys_given_its_random_numbers(engine, networks, phantoms, box):
    images, labels = phantoms
    generator = torch.Generator().manual_seed(1)
    expected = stbo(networks["standard"], images[14:15], labels[14:15], box, evaluations=40, generator=generator)
    generator = torch.Generator().manual_seed(1)  # the same draws: a shift of the Sobol points, then the candidates
    draws = [
        *torch.rand(3, generator=generator).tolist(),
        *torch.rand(30, 96, 4, generator=generator).flatten().tolist(),
    ]
    ask = """([box, draws]) => { const found = engine.search("standard", engine.phantoms[14], engine.labels[14], box);
        let next = 0;
        for (const _ of engine.stbo(found, box, 40, () => draws[next++])); return [found.s, found.history]; }"""
    given = [{"translation": box.translation, "rotation": box.rotation}, draws]
    s, history = engine.evaluate(ask, given)
    assert torch.allclose(torch.tensor(history, dtype=torch.float64), expected.history[0], atol=1e-3)
    assert s == pytest.approx(expected.s[0].tolist(), abs=1e-2)


def test_the_normal_distribution_is_scipys(engine):
    from scipy import stats

    u, p = [-8.0, -4.1, -3.9, -1.0, 0.0, 0.5, 3.99, 6.0], [1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6]
    found = engine.evaluate("([u, p]) => [u.map(engine.distribution), p.map(engine.quantile)]", [u, p])
    assert found[0] == pytest.approx(stats.norm.cdf(u).tolist(), rel=1e-9)
    assert found[1] == pytest.approx(stats.norm.ppf(p).tolist(), abs=1e-9)


def test_a_gradient_takes_at_most_20_ms(engine):
    ask = """() => { const spent = [];
        for (let n = 0; n < 60; n++) {
            const since = performance.now();
            engine.gradient("standard", engine.phantoms[0], 0);
            spent.push(performance.now() - since);
        }
        return spent; }"""
    assert min(engine.evaluate(ask)) <= 20  # the least of many: other processes only add


def test_the_page_finds_itself_equal_to_pytorch(opened):
    page = opened()
    found = json.loads(page.evaluate("document.documentElement.dataset.checked"))
    assert found["logits"] < 1e-4 and found["gradient"] < 1e-4
    assert page.locator(".error").count() == 0


def test_an_address_shows_what_it_was_taken_from(opened):
    page = opened()
    for value in ("pgd", "wide", "hybrid"):
        page.locator(f"button[value={value}]").click()
    page.locator("#eps").fill("3.5")
    page.locator("#seen").press("ArrowRight")
    page.locator("#seen").press("[")
    page.locator("#phantoms button").nth(7).click()
    address, state = page.evaluate("[location.hash, JSON.stringify(state)]")
    assert json.loads(state) | {"noise": "pgd", "box": "wide", "network": "hybrid", "eps": 3.5} == json.loads(state)
    again = opened(address)
    assert again.evaluate("JSON.stringify(state)") == state
    again.wait_for_function("results.answers")
    page.wait_for_function("results.answers && results.job === jobs.look")
    assert again.locator("#answers").inner_text() == page.locator("#answers").inner_text()


@pytest.mark.parametrize("hash_", ["#e=99&a=nan&m=nobody&i=-3", "#%%%", "#q=7&i=2.4"])
def test_an_address_without_sense_does_no_harm(opened, hash_):
    state = json.loads(opened(hash_).evaluate("JSON.stringify(state)"))
    assert 0 <= state["eps"] <= 8 and state["network"] == "standard" and 0 <= state["question"] <= 4
    assert state["image"] in range(24)


def test_keys_move_the_cell_and_are_told(opened):
    page = opened("#n=none&e=0")
    page.locator("#seen").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "]", "]"):
        page.keyboard.press(key)
    assert page.evaluate("[state.right, state.down, state.angle]") == [0.5, -0.25, -10]
    page.wait_for_function("document.getElementById('live').textContent.includes('malignant')")
    page.wait_for_function("document.getElementById('seen').getAttribute('aria-label').includes('turned by -10')")


def test_a_finger_shifts_the_cell(opened):
    page = opened("#n=none&e=0")
    box = page.locator("#seen").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + box["width"] / 32 * 3, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    assert page.evaluate("state.right") == pytest.approx(3, abs=0.1) and page.evaluate("state.angle") == 0


def test_every_question_can_be_asked(opened):
    page = opened()
    for number in range(5):
        page.locator("#questions button").nth(number).click()
        steps = page.locator("#lesson [data-step]")
        for step in range(steps.count()):
            steps.nth(step).click()
            assert steps.nth(step).get_attribute("aria-pressed") == "true"
        assert page.locator("#lesson a").get_attribute("href").startswith("../../")


def test_a_search_ends_at_its_worst_query(opened):
    page = opened("#n=none&e=0&v=stbo100", reduced_motion="reduce")
    page.wait_for_function("runs.length === 1 && results.job === jobs.look && results.loss > 1e-3")
    assert page.evaluate("queries.length") == 100 and "100 queries" in page.locator(".counters").inner_text()
    page.wait_for_function("Math.abs(results.loss - runs[0].loss) < 1e-9")
    assert page.evaluate("runs[0].loss") == page.evaluate("Math.max(...queries.map(query => query.loss))")


def test_all_24_phantoms_are_counted(opened, networks, phantoms):
    images, labels = phantoms
    page = opened("#n=fgsm&e=2")
    page.wait_for_function("tally.length === 72")
    for name, network in networks.items():
        after = measure.logits(network, attacks.fgsm(network, images, labels, eps=2 / 255)).argmax(dim=1)
        before = measure.logits(network, images).argmax(dim=1)
        row = page.locator(f"#tally tr[data-network={name}]").inner_text()
        shares = [int(100 * (after == what).double().mean().item() + 0.5) for what in (labels, before)]
        assert [int(number) for number in re.findall(r"(\d+) %", row)] == shares


@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1400, "light")])
def test_it_is_legible_and_can_be_touched(opened, width, scheme):
    page = opened(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.wait_for_function("tally.length === 72")
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate("""[...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
        && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
        && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML.slice(0, 80))""")
    assert small == []
    targets = page.evaluate("""[...document.querySelectorAll("button, .button, summary, input")]
        .filter(e => e.checkVisibility()).map(e => [e.getBoundingClientRect(), e.outerHTML.slice(0, 80)])
        .filter(([box]) => Math.min(box.width, box.height) < 39.5).map(([_, html]) => html)""")
    assert targets == []


def test_inside_the_book_address_theme_and_height_are_shared(browser, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "_static" / "explorer")
    block = re.search(r"```\{raw\} html\n(.*?)```", (ROOT / "book/explorer.md").read_text("utf-8"), re.S)[1]
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "explorer.html").write_text(
        f"<!doctype html><html data-theme='dark'><body>{block}</body></html>"
    )
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto((tmp_path / "book" / "explorer.html").as_uri() + "#q=1&n=pgd&e=4&a=30")
    frame = page.frame(url=lambda url: "_static" in url)
    frame.wait_for_function("document.documentElement.dataset.checked && state.angle === 30")
    assert frame.evaluate("document.documentElement.dataset.theme") == "dark"
    frame.locator("button[value=fgsm]").click()
    page.wait_for_function("location.hash.includes('n=fgsm') && location.hash.includes('a=30')")
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    frame.wait_for_function("document.documentElement.dataset.theme === 'light'")
    inner = frame.evaluate("document.documentElement.scrollHeight")
    assert page.evaluate("document.getElementById('explorer').offsetHeight") >= inner > 600
    page.close()


def test_it_explains_itself_without_javascript(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(PAGE.as_uri())
    assert "needs JavaScript" in page.locator("main noscript").inner_text()
    context.close()


def test_the_pages_links_lead_somewhere():
    script = (FOLDER / "explorer.js").read_text("utf-8")
    for path, anchor in re.findall(r'"((?:notebooks|book)/[\w/]+)\.html(?:#(\w+))?"', script):
        source = (ROOT / path).with_suffix(".md")
        assert source.is_file(), path
        assert not anchor or f"({anchor})=" in source.read_text("utf-8")
