"""Do the standard attacks of ``hpatlib`` and those of torchattacks leave the same images standing?

Claim: the same verdict on at least 99 % of the images. First each attack alone, on a small network that is trained
here, on real ultrasound where ``HPAT_DATA`` is set and on phantoms otherwise. Then, on real images only, networks
behind claims: the standard attacks with the budget that their document's laptop profile has now, without those made on
other models, against AutoAttack's attacks with their authors' budget, on ``--images`` test images, at the median of
their smallest ε and at a claim's own. Networks that were kept are loaded, others trained.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torchattacks
from _timing import Row, arguments, row, save
from torch import Tensor, nn

from hpatlib import measure, runs
from hpatlib.apgd import apgd, distance
from hpatlib.data import ImageSet
from hpatlib.documents import assimilation, hpat, ultrasound
from hpatlib.documents.hpat.study import strategies
from hpatlib.documents.ultrasound.study import against
from hpatlib.measure import logits
from hpatlib.square import square
from hpatlib.training import Recipe
from hpatlib.worst_case import TOLERANCE, WorstCase, smallest_eps, worst_case

Suite = Callable[..., WorstCase]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="test images of a network behind claims [%(default)s]")
    options = arguments(None, parser=parser)
    torch.set_num_threads(1)
    rows = list(small(options))
    if "HPAT_DATA" in os.environ:
        rows += behind_claims(options)
    save("agreement", rows, options)


def small(options: argparse.Namespace) -> Iterator[Row]:
    """Each attack alone, at the quartiles of the smallest ε that changes an answer."""
    real = "HPAT_DATA" in os.environ
    about = {"split_by": "patient", "test": 0.2, "model": "simple_cnn", "weights": "scratch", "seed": 0}
    count, recipe = None if real else 256, Recipe(epochs=8)
    run = runs.Run(dataset="busi", real=real, size=32, count=count, recipe=recipe, **about)
    trained = runs.train_or_load(run, device=options.device)
    images, labels = trained.test.tensors(options.device)
    model, where = trained.model, f"simple CNN on {trained.test.name}"
    for eps in quantiles(smallest_eps(model, images, labels, most=0.5), 0.25, 0.5, 0.75):
        draws = torch.Generator().manual_seed(0)
        ours = apgd(model, images, labels, eps=eps, iterations=50, generator=draws)
        theirs = torchattacks.APGD(model, eps=eps, steps=50)(images, labels)
        yield differ("APGD", where, eps, stands(model, ours, labels), stands(model, theirs, labels))
        ours = square(model, images, labels, eps=eps, queries=500, generator=draws)
        theirs = torchattacks.Square(model, eps=eps, n_queries=500)(images, labels)
        left = stands(model, theirs, labels)
        yield differ("Square", where, eps, stands(model, ours, labels), left)
        # A random search: how often does it differ from itself?
        again = torchattacks.Square(model, eps=eps, n_queries=500, seed=1)(images, labels)
        yield differ("torchattacks' Square", where, eps, stands(model, again, labels), left, peer="its other seed")


def behind_claims(options: argparse.Namespace) -> Iterator[Row]:
    """The suite, at the median of the smallest ε and at the claims' own."""
    cells, slides, report = (document.choose("laptop", "real", 0) for document in (hpat, assimilation, ultrasound))
    named, budget = strategies(cells, ["Standard", "Adv_h"]), slides.settings
    hard = partial(measure.SUITE, queries=cells.settings.queries)
    tries = {"iterations": budget.suite_iterations, "auto_iterations": budget.auto_iterations}
    tries |= {"restarts": budget.restarts, "queries": budget.queries}
    asked: dict[str, tuple[runs.Run, Suite, tuple[float, ...]]] = {
        "standard training on C-NMC": (named["Standard"][0], hard, ()),
        "hybrid training on C-NMC": (named["Adv_h"][0], hard, (6 / 255,)),
        f"vanilla on {slides.run.dataset}": (slides.run, partial(worst_case, **tries), (0.25 / 255,)),
        f"online training on {report.run.dataset}": (
            against(report.run, "online", 0.05),
            partial(worst_case, iterations=report.settings.iterations, queries=report.settings.queries),
            (0.05,),
        ),
    }
    for where, (run, suite, claimed) in asked.items():
        trained = runs.train_or_load(run, device=options.device)
        model, few = trained.model.requires_grad_(False), measure.sample(trained.test, options.images)
        for eps in (*quantiles(_smallest(model, few, options.device), 0.5), *claimed):
            yield suites(model, few, eps, where, suite, options.device)


def suites(model: nn.Module, few: ImageSet, eps: float, where: str, suite: Suite, device: str) -> Row:
    """The same verdicts of both suites, batch by batch; and how many images each attack was the first to fell."""
    draws, mine, other = torch.Generator().manual_seed(0), [], []
    ours, theirs = Counter[str](), Counter[str]()
    for images, labels in few.batches(measure.BATCH, device=device):
        found = suite(model, images, labels, eps=eps, generator=draws)
        mine.append(found.right)
        ours.update(name or "stands" for name in found.felled_by)
        left = stands(model, images, labels)
        for name, attack in autoattack(model, eps, len(few.classes)).items():
            if not len(index := left.nonzero().squeeze(1)):
                break
            x, y = images[index], labels[index]
            tried = attack(x, y)
            within = distance(tried - x, "linf") <= eps + TOLERANCE
            left[index] = stands(model, tried, y) | ~within
            theirs[name] += len(index) - int(left.sum())
        other.append(left)
    compared = differ("the suite", where, eps, torch.cat(mine), torch.cat(other), peer="AutoAttack of torchattacks")
    return compared | {"felled_by": {"hpatlib": dict(ours), "torchattacks": dict(theirs)}}


def autoattack(model: nn.Module, eps: float, classes: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """AutoAttack's attacks, those on a target class where there are enough of them."""
    attacks = {"APGD": torchattacks.APGD(model, eps=eps, steps=100)}
    if classes > 3:
        attacks["APGD-T"] = torchattacks.APGDT(model, eps=eps, steps=100, n_classes=classes)
    attacks["FAB"] = torchattacks.FAB(model, eps=eps, steps=100, n_classes=classes)
    return attacks | {"Square": torchattacks.Square(model, eps=eps, n_queries=5000)}


def _smallest(model: nn.Module, few: ImageSet, device: str) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    found = (smallest_eps(model, x, y, most=32 / 255, generator=draws) for x, y in few.batches(64, device=device))
    return torch.cat(list(found))


def quantiles(distances: Tensor, *shares: float) -> list[float]:
    """Of the distances of those images that are answered right."""
    right = distances[distances > 0]
    return right.quantile(torch.tensor(shares).to(right)).tolist()


def stands(model: nn.Module, found: Tensor, labels: Tensor) -> Tensor:
    return logits(model, found).argmax(dim=1) == labels


def differ(attack: str, where: str, eps: float, mine: Tensor, other: Tensor, peer: str = "torchattacks") -> Row:
    """The share of images with another verdict, against one in a hundred; ``agreement``: what stands under the attack
    here, under the peer's, and under one of them alone."""
    share = float((mine != other).double().mean())
    alone = f"{(mine & ~other).sum()} and {(other & ~mine).sum()} in one of them alone"
    told = f"{mine.sum()} and {other.sum()} of {len(mine)} stand ({alone})"
    print(f"{attack} and {peer}, {where}, ε = {255 * eps:.3f}/255: {told}", flush=True)
    what = f"share of images with another verdict than {peer}: {attack}, {where}, ε = {255 * eps:.2f}/255"
    measured = {peer: [share], "one per cent": [0.01]}
    target = None if peer == "its other seed" else 1.0
    stand = [int(each.sum()) for each in (mine, other, mine & ~other, other & ~mine)]
    about = {"attack": attack, "peer": peer, "where": where, "eps": eps, "images": len(mine), "stand": stand}
    return row(what, measured, peer, "one per cent", target=target, unit="of the images") | {"agreement": about}


if __name__ == "__main__":
    main()
