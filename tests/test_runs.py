"""Runs: keys that say what decides a model and nothing else, models kept by key, and what training makes of a run.

The golden tests at the end hold numbers that training and attacks gave when they were written. Where one fails because
a part of the library now does something else, and should, raise that part's number in ``runs.BEHAVIOUR`` and put the
new numbers here: all models that went through it have to be trained again.
"""

import json
import multiprocessing
import os
import subprocess
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpatlib import attacks, models, runs, training
from hpatlib._files import alone
from hpatlib.assimilation import Objective
from hpatlib.data import ImageSet
from hpatlib.data.images import fingerprint
from hpatlib.hybrid import Adversary
from hpatlib.runs import Run, key, train_or_load
from hpatlib.spatial import Box
from hpatlib.stbo import stbo
from hpatlib.training import Recipe

PGD = Adversary(eps=8 / 255, step=2 / 255, iterations=3, start="gaussian")
HYBRID = replace(PGD, translation=3, rotation=180, evaluations=12)


@pytest.fixture
def run(monkeypatch, tmp_path) -> Run:
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    recipe = Recipe(epochs=1, batch_size=32)
    return Run("cnmc", False, 32, 160, "patient", 1 / 3, "simple_cnn", "scratch", recipe, 0)


# Keys


PLAIN = Run("busi", True, 64, None, "random", 1 / 3, "resnet50", "scratch", Recipe(), 0)
GREY = replace(PLAIN, dataset="chest_ct", split_by="patient", model="tf_efficientnet_lite0", seed=2, repeat=1)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (PLAIN, "db458e14f72cef01"),
        (replace(PLAIN, recipe=Recipe(epochs=10, lr=1e-4, patience=3), test=0.2), "6cacdc0a03fa5e60"),
        (replace(PLAIN, recipe=Recipe(augment="flips")), "73c64c74efc4b60e"),
        (replace(PLAIN, static_eps=0.05), "4b1ef5b5f225d20b"),
        (replace(PLAIN, adversary=PGD, mixbn=True), "3bf8811152dc1de3"),
        (replace(PLAIN, adversary=HYBRID), "51aaa1d4351cf7bc"),
        (replace(GREY, front="replicated"), "a97eedc776884739"),
        (replace(GREY, front="assimilated", objective=Objective(0.9)), "b7ec46f3f33ee06c"),
    ],
)
def test_keys_stay_what_they_are(run, expected):
    """On every machine and every version of Python: trained models are found by them."""
    assert key(run, "f00d") == expected


def test_defaults_are_part_of_every_key():
    """Fields at their defaults are left out of keys, so another default would give old models a new meaning."""
    pinned = {
        Run: {"repeat": 0, "static_eps": None, "adversary": None, "mixbn": False, "front": None, "objective": None}
        | {"spread": None},
        Recipe: {"epochs": 20, "batch_size": 16, "lr": 1e-3, "decay": 0.1, "decay_every": 10, "patience": None}
        | {"augment": None, "front_lr": None},
        Adversary: {"eps": 0, "step": 0, "iterations": 1, "start": None, "translation": 0, "rotation": 0}
        | {"evaluations": 0, "literal": False, "warmup": 0},
        Objective: {"target": "C(T(x))", "texture": Objective(1).texture},
        type(Objective(1).texture): {"form": "max", "distance": 3, "angles": 8, "window": 20, "stride": None}
        | {"features": ("asm", "contrast", "homogeneity", "correlation", "dissimilarity")},
    }
    for settings, defaults in pinned.items():
        now = {name: field.default for name, field in settings.__dataclass_fields__.items()}
        assert {name: now[name] for name in defaults} == defaults, settings.__name__


def test_a_key_follows_from_what_decides_the_model_and_from_nothing_else(monkeypatch):
    base = key(PLAIN, "f00d")
    assert base == key(replace(PLAIN), "f00d") == key(replace(PLAIN, adversary=None), "f00d")
    changed = [replace(PLAIN, seed=1), replace(PLAIN, size=32), replace(PLAIN, recipe=Recipe(epochs=2))]
    changed += [replace(PLAIN, weights="imagenet"), replace(PLAIN, adversary=PGD), replace(PLAIN, count=10)]
    keys = {base, key(PLAIN, "beef"), key(PLAIN, "f00d", own=True), *(key(other, "f00d") for other in changed)}
    assert len(keys) == 3 + len(changed)
    # The same numbers, written otherwise.
    other = replace(PLAIN, size=np.int64(64), seed=np.int32(0), recipe=Recipe(lr=np.float64(1e-3), decay_every=10))
    assert key(other, "f00d") == base
    assert key(replace(PLAIN, test=np.float64(1 / 3)), "f00d") == base
    assert len({key(replace(PLAIN, adversary=replace(PGD, warmup=n)), "f00d") for n in (0, 1, np.int64(1), 2)}) == 3
    assert key(replace(PLAIN, adversary=replace(HYBRID, translation=np.int64(3), rotation=180.0)), "f00d") == key(
        replace(PLAIN, adversary=HYBRID), "f00d"
    )


@pytest.mark.parametrize("part", runs.BEHAVIOUR)
def test_a_raised_behaviour_changes_the_keys_of_the_runs_that_go_through_the_part(part, monkeypatch):
    through = {
        "standard": (PLAIN, {"training", "models"}),
        "static": (replace(PLAIN, static_eps=0.05), {"training", "models", "attacks"}),
        "mixbn": (replace(PLAIN, adversary=PGD, mixbn=True), {"training", "models", "attacks", "mixbn"}),
        "hybrid": (replace(PLAIN, adversary=HYBRID), {"training", "models", "attacks", "stbo"}),
        "turned": (replace(PLAIN, adversary=Adversary(rotation=9, evaluations=9)), {"training", "models", "stbo"}),
        "grey": (replace(GREY, front="replicated"), {"training", "models", "assimilation"}),
    }
    before = {name: key(run, "f00d") for name, (run, _) in through.items()}
    own = key(PLAIN, "f00d", own=True)
    monkeypatch.setitem(runs.BEHAVIOUR, part, 99)
    changed = {name for name, (run, _) in through.items() if key(run, "f00d") != before[name]}
    assert changed == {name for name, (_, parts) in through.items() if part in parts}
    assert (key(PLAIN, "f00d", own=True) != own) == (part == "training")


def test_start_weights_count_by_their_bytes_and_not_by_where_they_lie(tmp_path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, content in zip(paths, (b"same", b"same", b"other"), strict=True):
        path.write_bytes(content)
    keys = [key(replace(PLAIN, weights=str(path)), "f00d") for path in paths]
    assert keys[0] == keys[1] != keys[2]


def test_runs_are_plain_data_and_back():
    for run in (
        PLAIN,
        replace(PLAIN, adversary=HYBRID, mixbn=True),
        replace(GREY, front="assimilated", objective=Objective(0.5)),
        replace(GREY, front="assimilated", spread=0.1),
    ):
        told = json.loads(json.dumps(runs.to_dict(run)))
        assert runs.from_dict(told) == run == runs.from_dict(json.loads(json.dumps(asdict(run))))
        assert key(runs.from_dict(told), "f00d") == key(run, "f00d")
    assert runs.to_dict(PLAIN)["recipe"] == {} and "repeat" not in runs.to_dict(PLAIN)
    with pytest.raises(ValueError, match="seed"):
        runs.from_dict({**runs.to_dict(PLAIN), "seed": "one"})
    with pytest.raises(ValueError, match="Run has no mixBN: choose of dataset"):
        runs.from_dict({**runs.to_dict(PLAIN), "mixBN": True})
    with pytest.raises(ValueError, match="Recipe has no epoch: choose of epochs"):
        runs.from_dict({**runs.to_dict(PLAIN), "recipe": {"epoch": 3}})


def test_contradictions_are_refused():
    for change, message in (
        ({"static_eps": 0}, r"static_eps must lie in \(0, 1\]"),
        ({"static_eps": 0.1, "adversary": PGD}, "not both"),
        ({"mixbn": True}, "mixbn needs an adversary"),
        ({"front": "painted"}, "unknown front 'painted'"),
        ({"objective": Objective(0.5)}, 'needs front="assimilated"'),
    ):
        with pytest.raises(ValueError, match=message):
            replace(PLAIN, **change)


def test_a_lock_is_one_by_whatever_link_its_folder_is_reached(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for way in ("real", "link"):
        with alone(tmp_path / way / "model", locks=tmp_path / "locks"):
            assert len(list((tmp_path / "locks").glob("*.lock"))) == 1


def test_the_environment_names_the_commit_of_a_checkout_and_of_nothing_else(monkeypatch, tmp_path):
    checkout = Path(runs.__file__).parents[1]
    told = runs.environment("cpu")
    assert told["device"].startswith("CPU") and {"hpatlib", "torch", "timm"} <= set(told["versions"])
    if (checkout / ".git").exists():
        assert told["commit"].removesuffix("-dirty").isalnum() and 7 <= len(told["commit"]) <= 46
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "site-packages" / "hpatlib" / "runs.py"))
    assert runs.commit() is None
    assert runs.environment("cpu") == told  # of the code that was imported, whatever the disk has now


def test_changed_code_makes_a_commit_dirty_and_a_renewed_result_does_not(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    for name in ("pyproject.toml", "hpatlib/runs.py", "evidence/a/record.json", "benchmarks/results/stbo.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "all")
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "hpatlib" / "runs.py"))
    clean = runs.commit()
    for name in ("evidence/a/record.json", "benchmarks/results/stbo.json", "untracked.py"):
        (tmp_path / name).write_text("2")
    assert clean and clean.isalnum() and runs.commit() == clean
    (tmp_path / "hpatlib" / "runs.py").write_text("2")
    assert runs.commit() == f"{clean}-dirty"


# Models kept by key


def test_a_run_is_trained_once_and_loaded_ever_after(run, monkeypatch):
    first = train_or_load(run, device="cpu")
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    second = train_or_load(run, device="cpu")
    assert same(first.model, second.model) and not second.model.training
    about = second.provenance
    assert first.provenance == about and about["data"]["test"] == len(first.test)
    assert about["start"] == "scratch" and about["dose"] == {} and about["parent"] is None
    assert about["behaviour"] == {"training": runs.BEHAVIOUR["training"], "models": runs.BEHAVIOUR["models"]}
    assert runs.from_dict(about["run"]) == run and len(about["epochs"]) == 1 and "commit" in about


def test_what_a_caller_draws_does_not_hang_on_whether_a_model_was_stored(run):
    draws = []
    for _ in range(2):  # trained, then loaded
        torch.manual_seed(3)
        train_or_load(run, device="cpu")
        draws.append(torch.rand(3).tolist())
    torch.manual_seed(3)
    assert draws == [torch.rand(3).tolist()] * 2


def test_a_network_with_a_module_in_two_places_is_trained_and_loaded(run):
    class Tied(nn.Module):
        def __init__(self, classes: int, channels: int) -> None:
            super().__init__()
            norm = nn.BatchNorm2d(8)
            turns = nn.Conv2d(channels, 8, 3, 2), norm, nn.ReLU(), nn.Conv2d(8, 8, 3, 2), norm, nn.ReLU()
            self.body = nn.Sequential(*turns, nn.Flatten(), nn.LazyLinear(classes))
            self.body(torch.zeros(2, channels, run.size, run.size))

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images)

    own = replace(run, model="tied")
    first, second = (train_or_load(own, network=Tied, device="cpu") for _ in range(2))
    assert same(first.model, second.model) and second.model.body[1] is second.model.body[4]


def test_a_half_written_model_is_trained_again(run, tmp_path):
    found = train_or_load(run, device="cpu").provenance["key"]
    (tmp_path / "models" / found / "run.json").unlink()
    assert train_or_load(run, device="cpu").provenance["key"] == found
    assert not (tmp_path / "models" / found / "checkpoint.safetensors").exists()


def _train(home: str, run: Run, queue) -> None:
    os.environ["HPAT_HOME"] = home
    torch.set_num_threads(1)
    calls, fit = [], training.fit
    training.fit = lambda *args, **kwargs: (calls.append(1), fit(*args, **kwargs))[1]
    queue.put("started")
    train_or_load(run, device="cpu")
    queue.put(len(calls))


def test_of_two_processes_one_trains_and_the_other_waits(run, tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    queue, fit = context.Queue(), training.fit
    other = context.Process(target=_train, args=(str(tmp_path), run, queue))

    def interrupted(*args, **kwargs):  # holds the lock until the other process has had time to want it
        other.start()
        assert queue.get(timeout=300) == "started"
        time.sleep(1)
        assert queue.empty()
        return fit(*args, **kwargs)

    monkeypatch.setattr(training, "fit", interrupted)
    train_or_load(run, device="cpu")
    assert queue.get(timeout=300) == 0  # it waited, and loaded
    other.join(timeout=60)


# Images and a network of one's own


def squares(count: int = 96, *, channels: int = 3, size: int = 32) -> ImageSet:
    """Noise with a bright square in red (class 0) or green (class 1); of grey images, a tall or a square one.

    Whole numbers throughout: these pixels are the same on every processor.
    """
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = random.integers(0, 100, (count, channels, size, size)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = random.integers(0, size // 2, 2)
        width = 6 + 6 * label if channels == 1 else 12
        image[label % channels, top : top + 12, left : left + width] += 100
    groups = np.arange(count).astype(str)
    return ImageSet("squares", images, labels, groups, ("red", "green"), False, fingerprint(images, labels, groups))


class Precise(nn.Module):
    """A small network with MixBN's batch norm that rounds alike everywhere: double precision, smooth, exact first
    weights. Training against gradients' signs is chaotic, and a last bit would be a percent after two epochs.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        ).double()
        random = np.random.default_rng(0)
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.copy_(torch.from_numpy(random.integers(-32, 33, layer.weight.shape) / 128))
                    layer.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.double())


OWN = Run(
    "squares",
    False,
    32,
    None,
    "image",
    1 / 3,
    "precise",
    "own",
    Recipe(epochs=2, batch_size=16, lr=0.01, decay_every=1),
    0,
)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("change", [{}, {"adversary": PGD}, {"adversary": PGD, "mixbn": True}, {"static_eps": 0.05}])
def test_images_and_a_network_of_ones_own_are_trained_once(change, monkeypatch, tmp_path):
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    run = replace(OWN, **change)
    first = train_or_load(run, images=squares(), network=Precise, device="cpu")
    assert first.provenance["data"]["name"] == "squares" and first.provenance["start"] == "own"
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    second = train_or_load(run, images=squares(), network=Precise, device="cpu")
    assert same(first.model, second.model) and first.provenance == second.provenance
    monkeypatch.undo()
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    others = [
        train_or_load(run, images=squares(90), network=Precise, device="cpu"),
        train_or_load(replace(run, model="another"), images=squares(), network=Precise, device="cpu"),
    ]
    assert len({first.provenance["key"], *(other.provenance["key"] for other in others)}) == 3


def test_a_killed_training_of_ones_own_resumes(monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    calls = []

    class Watched(Precise):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(self.training)
            if calls.count(True) == limit:
                raise Killed
            return super().forward(images)

    limit, arguments = None, {"images": squares(), "network": Watched, "device": "cpu"}
    run = replace(OWN, adversary=PGD)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "whole"))
    whole = train_or_load(run, **arguments)
    steps = calls.count(True)  # 2 epochs of 4 batches
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "killed"))
    calls.clear()
    limit = 6  # in the second epoch
    with pytest.raises(Killed):
        train_or_load(run, **arguments)
    calls.clear()
    limit = None
    resumed = train_or_load(run, **arguments)
    assert steps == 8 and calls.count(True) == 4
    assert same(whole.model, resumed.model)
    told = resumed.provenance
    assert (
        told["seconds"] >= sum(epoch["seconds"] for epoch in told["epochs"]) - 0.05
    )  # those before it was killed, too


def test_images_are_those_that_the_run_states(monkeypatch, tmp_path):
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    for change, message in (
        ({"size": 64}, "size=64, but squares has size=32"),
        ({"real": True}, "real=True, but squares has real=False"),
        ({"count": 50}, "count=50, but squares has 96 images"),
    ):
        with pytest.raises(ValueError, match=message):
            train_or_load(replace(OWN, **change), images=squares(), network=Precise)
    with pytest.raises(ValueError, match="unknown model 'precise'"):
        train_or_load(replace(OWN, weights="scratch"), images=squares())
    with pytest.raises(ValueError, match="Unknown data set 'squares'"):
        train_or_load(OWN, network=Precise)
    assert not list(tmp_path.rglob("lock"))


# Golden tests

CURVES = {  # part of BEHAVIOUR to raise, run, loss of each epoch
    "standard": ("training", OWN, [0.476687, 0.294439]),
    "patience": (
        "training",
        replace(OWN, recipe=replace(OWN.recipe, patience=1)),
        [0.51482, 0.574752, 0.308575, 0.545223],
    ),
    "pgd": ("attacks", replace(OWN, adversary=PGD), [1.25078, 0.799651]),
    "static": ("attacks", replace(OWN, static_eps=8 / 255), [0.79851, 0.540642]),
    "hybrid": ("stbo", replace(OWN, adversary=HYBRID), [1.4173, 0.989646]),
    "mixbn": ("mixbn", replace(OWN, adversary=PGD, mixbn=True), [1.24887, 0.793895]),
    "assimilated": ("assimilation", replace(OWN, front="assimilated", objective=Objective(0.5)), [0.396236, 0.308173]),
}


@pytest.mark.parametrize("name", CURVES)
def test_training_makes_of_a_run_what_it_always_made(name, monkeypatch, tmp_path):
    """Own images and network, so that neither a phantom nor a backbone has a part in it."""
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    part, run, expected = CURVES[name]
    images = squares(channels=3 if run.front is None else 1)
    epochs = train_or_load(run, images=images, network=Precise, device="cpu").provenance["epochs"]
    losses = [epoch[kind] for epoch in epochs for kind in ("loss", "validation_loss") if kind in epoch]
    assert losses == pytest.approx(expected, rel=2e-4), f"raise BEHAVIOUR[{part!r}]"


ATTACKS = {  # part of BEHAVIOUR to raise, attack, what ``seen`` says of what it did
    "fgsm": ("attacks", partial(attacks.fgsm, eps=0.05), [-0.0438309, 0.271252, 0.0453359, 0.0473371, 0.526909]),
    "pgd": (
        "attacks",
        partial(attacks.pgd, eps=0.05, step=0.02, iterations=5, start="uniform"),
        [-0.0442413, 0.27146, 0.0464237, 0.047562, 1.20606],
    ),
    "one step": (
        "attacks",
        partial(attacks.pgd, eps=0.05, step=0.02, iterations=1, start="gaussian"),
        [0.0568341, 0.168717, 0.0185391, 0.019218, 0.196267],
    ),
    "stbo": (
        "stbo",
        partial(stbo, box=Box(4, 180), evaluations=16),
        [-0.0258408, 0.10277, 0.131581, 0.173122, -3.32998],
    ),
    "narrow stbo": (
        "stbo",
        partial(stbo, box=Box(0, 20), evaluations=16, initial=4),
        [0.100675, 0.0994615, 0.0813906, 0.124768, 0.702291],
    ),
}


def seen(made: Tensor, images: Tensor) -> list[float]:
    """Logit differences of two images; mean, deviation and tilt of what changed, which logits may not show."""
    change = (made - images).double()
    ramp = torch.linspace(-1, 1, change[0].numel(), dtype=torch.float64).view_as(change[0])
    logits = Precise(2, 3).eval()(made[:2])
    tilt = (change * ramp).sum(dim=(1, 2, 3)).mean()
    return torch.stack([*(logits[:, 0] - logits[:, 1]), change.abs().mean(), change.std(), tilt]).tolist()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_make_of_images_what_they_always_made(name):
    part, attack, expected = ATTACKS[name]
    images, labels = squares(12).tensors()
    torch.manual_seed(0)
    made = attack(Precise(2, 3).eval(), images, labels)
    found = seen(made if isinstance(made, Tensor) else made.images, images)
    assert found == pytest.approx(expected, rel=2e-4), f"raise BEHAVIOUR[{part!r}]"


MODELS = {  # deviation of the logits over 16 images, before and after a first look at them in training mode
    "simple_cnn": [0.00825239, 0.00825239],
    "simple_cnn_bn": [0.00825222, 0.0100747],
    "resnet18": [0.00364177, 0.00378051],
    "tf_efficientnet_lite0": [0.0414267, 0.00693912],
}


@pytest.mark.parametrize("name", MODELS)
def test_models_start_as_they_always_started(name):
    images, _ = squares(16, size=48).tensors()
    torch.manual_seed(0)
    model = models.build(name, 2, size=48, weights="scratch")
    with torch.no_grad():
        first = model.eval()(images)
        model.train()(images)  # moves the statistics of batch norms
        second = model.eval()(images)
    found = [logits.std(dim=0)[0].item() for logits in (first, second)]
    assert found == pytest.approx(MODELS[name], rel=2e-4), "raise BEHAVIOUR['models']"
