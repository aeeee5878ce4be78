"""What was measured, image by image: a row a model, condition and image, and named cells to compute with.

Tables, curves, effects and verdicts are all computed from these rows, so a new threshold, interval or claim needs no
network to be trained again. A cell is named by its conditions, in the order in which a record lists them:

    accuracy = outcomes.where(split="patient").accuracy
    drop = accuracy["Standard", "H0"] - accuracy["Standard", "H6", "fixed"]

and is a `statistics.Estimate`, which knows its trainings and its images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from hpatlib import statistics
from hpatlib.statistics import Estimate, Leaf

# Every row has these; what else it has is a condition (text) or a measured value (half precision).
KEYS = {"model": "int16", "image": "category", "group": "category"}
ANSWERS = {"label": "int8", "prediction": "int8", "margin": "float16"}
NONE = -1  # the label or prediction of a row that has none: something else was measured there


class Unmeasured(ValueError):
    """A cell, column or record that a question needs is not there."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Per-image outcomes of one record.

    ``rows``: columns ``model`` (its number), the ``conditions`` (text), ``image`` (its stable id), ``group`` (what
    belongs together: a patient, near-duplicates), and what was measured: ``label``, ``prediction``, ``margin`` (the
    logit of class 1 less that of class 0; of the label less the best other one for more classes) and other numbers.
    ``seeds``: the training each model stands for (None: a network that is not trained anew). ``fixed``: what `where`
    has chosen, which tells apart cells that are named alike.
    """

    rows: pd.DataFrame
    conditions: tuple[str, ...]
    seeds: tuple[int | None, ...]
    fixed: tuple[str, ...] = ()

    def where(self, **given: object) -> Outcomes:
        """The rows of these conditions, which cells are no longer named by. A list keeps several of their values."""
        rows, fixed = self.rows, []
        for name, value in given.items():
            if name not in self.conditions:
                raise Unmeasured(f"no condition {name!r}: choose one of {', '.join(self.conditions) or 'none'}")
            several = isinstance(value, list | tuple)
            wanted = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
            known, rows = rows[name], rows[rows[name].isin(wanted)]
            if rows.empty:
                asked = ", ".join(f"{each}={given[each]!r}" for each in given)
                there = ", ".join(dict.fromkeys(known.astype(str)))
                raise Unmeasured(f"nothing measured with {asked}: the values of {name!r} are {there or 'none'}")
            fixed += [] if several else [name]
        left = tuple(name for name in self.conditions if name not in fixed)
        told = (*self.fixed, *(f"{name}={given[name]}" for name in fixed))
        return replace(self, rows=rows, conditions=left, fixed=told)

    def values(self, condition: str) -> list[str]:
        """The values that a condition takes, in the order in which they were measured."""
        return list(map(str, self.rows[condition].unique()))

    @cached_property
    def accuracy(self) -> Cells:
        """The share of images answered right."""
        return self._share("accuracy", lambda rows: rows["prediction"] == rows["label"])

    @cached_property
    def auc(self) -> Cells:
        """The area under the ROC curve of the margin, for two classes."""

        def area(rows: pd.DataFrame, leaf: tuple[Leaf, ...]) -> Estimate:
            if (most := rows["label"].max()) > 1:  # the margin is then no score of a class
                raise Unmeasured(f"the area under the ROC curve is of two classes, and a label here is {most}")
            return statistics.auc_of(rows["margin"], rows["label"] == 1, self._trainings(rows), rows["group"], leaf)

        return Cells(self._answered, "AUC", area)

    def precision(self, average: str = "binary") -> Cells:
        """True among all answers of the class: of class 1 (``"binary"``), or the mean over classes (``"macro"``)."""
        return self._ratio("precision", average, lambda hit, said, true: hit / said)

    def recall(self, average: str = "binary") -> Cells:
        """Answered right among all images of the class; averages as in `precision`."""
        return self._ratio("recall", average, lambda hit, said, true: hit / true)

    def f1(self, average: str = "binary") -> Cells:
        """The harmonic mean of precision and recall; averages as in `precision`."""
        return self._ratio("F1", average, lambda hit, said, true: hit * 2 / (said + true))

    def invariance(self, **reference: str) -> Cells:
        """ROI, equation 15: the share of predictions that are those of the same model and image at ``reference``,
        such as ``environment="H0", reading="clean"``."""
        there, before = self._referred(reference)
        return there._share("ROI", lambda rows: rows["prediction"] == before[rows.index])

    def flipped(self, **reference: str) -> Cells:
        """Of the predictions that are right at ``reference``, the share that is wrong here."""
        there, before = self._referred(reference)

        def share(rows: pd.DataFrame, leaf: tuple[Leaf, ...]) -> Estimate:
            right = before[rows.index] == rows["label"]
            lost = right & (rows["prediction"] != rows["label"])
            return self._mean(rows, lost, leaf) / self._mean(rows, right, ())

        return Cells(there, "flips", share)

    def mean(self, column: str) -> Cells:
        """The mean over images of a measured number; missing ones are left out."""
        if column not in self.rows:
            raise Unmeasured(f"no column {column!r} was measured: there are {', '.join(self.measured)}")
        return Cells(
            replace(self, rows=self.rows[self.rows[column].notna()]),
            column,
            lambda rows, leaf: self._mean(rows, rows[column], leaf),
        )

    @property
    def measured(self) -> list[str]:
        """The columns of measured numbers."""
        return [c for c in self.rows.columns if c not in (*KEYS, *self.conditions)]

    def _trainings(self, rows: pd.DataFrame) -> np.ndarray | None:
        if not self.seeds:  # no model was asked
            return None
        models = rows["model"].to_numpy()
        untrained = np.array([seed is None for seed in self.seeds])[models]
        if untrained.any() and not untrained.all():
            raise Unmeasured("a cell has trained and untrained models together: name more conditions")
        return None if untrained.all() else np.array(self.seeds, dtype=object)[models].astype(int)

    def _mean(self, rows: pd.DataFrame, values: pd.Series, leaf: tuple[Leaf, ...]) -> Estimate:
        kinds = rows["label"].to_numpy() if "label" in rows else None
        return statistics.mean_of(values.to_numpy(float), self._trainings(rows), rows["group"], leaf, kinds)

    @property
    def _answered(self) -> Outcomes:
        if "prediction" not in self.rows:
            raise Unmeasured(f"no predictions were measured: there are {', '.join(self.measured)}")
        return replace(self, rows=self.rows[self.rows["prediction"] != NONE])

    def _share(self, name: str, right: Callable[[pd.DataFrame], pd.Series]) -> Cells:
        return Cells(self._answered, name, lambda rows, leaf: self._mean(rows, right(rows), leaf))

    def _ratio(self, name: str, average: str, of: Callable[[Estimate, Estimate, Estimate], Estimate]) -> Cells:
        if average not in ("binary", "macro"):
            raise ValueError(f'average must be "binary" or "macro", found {average!r}')

        def score(rows: pd.DataFrame, leaf: tuple[Leaf, ...]) -> Estimate:
            classes = [1] if average == "binary" else range(int(rows["label"].max()) + 1)
            parts = []
            for k in classes:
                said, true = rows["prediction"] == k, rows["label"] == k
                parts.append(of(*(self._mean(rows, each, ()) for each in (said & true, said, true))))
            return replace(statistics.average(*parts), leaves=leaf)

        return Cells(self._answered, f"{average} {name}" if average == "macro" else name, score)

    def _referred(self, reference: Mapping[str, str]) -> tuple[Outcomes, pd.Series]:
        """The answers that have one at the reference, of the same model, image and other conditions; and that one."""
        answered = self._answered
        others = [c for c in self.conditions if c not in reference]
        there = answered.where(**reference).rows
        key = ["model", "image", *others]
        if there.duplicated(key).any():
            raise ValueError(f"more than one row a model and image at {dict(reference)}: name more conditions")
        wanted = there[[*key, "prediction"]].astype({name: str for name in ("image", *others)})
        merged = answered.rows[key].astype({name: str for name in ("image", *others)}).reset_index()
        before = merged.merge(wanted, on=key, how="inner").set_index("index")["prediction"].sort_index()
        return replace(self, rows=answered.rows.loc[before.index]), before


@dataclass(frozen=True, eq=False)
class Cells:
    """One measure over all cells: ``cells["Standard", "H0"]`` is its estimate there.

    A key names the open conditions in their order; trailing ones may be left out where only one value is there.
    """

    outcomes: Outcomes
    measure: str
    build: Callable[[pd.DataFrame, tuple[Leaf, ...]], Estimate]

    def __getitem__(self, key: str | tuple[str, ...]) -> Estimate:
        asked = tuple(map(str, key if isinstance(key, tuple) else (key,)))
        if asked == ("",):
            asked = ()
        if len(asked) > len(self.outcomes.conditions):
            raise Unmeasured(f"{asked} names more than the conditions {self.outcomes.conditions}")
        matching = [known for known in self._index if known[: len(asked)] == asked]
        if len(matching) != 1:
            what = (
                ", ".join(f"{c}={v!r}" for c, v in zip(self.outcomes.conditions, asked, strict=False)) or "no condition"
            )
            if matching:
                raise Unmeasured(f"{self.measure} at {what} is {len(matching)} cells: name {self.outcomes.conditions}")
            raise Unmeasured(f"no {self.measure} at {what}: measured were {self._known(len(asked))}")
        return self._estimate(matching[0])

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def items(self) -> Iterator[tuple[tuple[str, ...], Estimate]]:
        """Each cell's key with its estimate, in the order in which they were measured."""
        return ((key, self._estimate(key)) for key in self._index)

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """A row a cell: its conditions, ``value``, ``low``, ``high``, ``trainings`` and ``n`` (images a training)."""
        rows = []
        for key, estimate in self.items():
            low, high = estimate.interval(level)
            number = {"value": estimate.value, "low": low, "high": high}
            about = {"trainings": len(estimate.values) if estimate.trainings else 0, "n": estimate.n}
            rows.append(dict(zip(self.outcomes.conditions, key, strict=True)) | number | about)
        return pd.DataFrame(rows)

    def each(self) -> pd.DataFrame:
        """A row a cell and training: its conditions, ``seed`` and ``value``."""
        rows = [
            dict(zip(self.outcomes.conditions, key, strict=True)) | {"seed": seed, "value": float(value)}
            for key, estimate in self.items()
            for seed, value in zip(estimate.trainings or (None,), estimate.values, strict=True)
        ]
        return pd.DataFrame(rows)

    @cached_property
    def _index(self) -> dict[tuple[str, ...], np.ndarray]:
        rows, conditions = self.outcomes.rows, list(self.outcomes.conditions)
        if not conditions:
            return {(): np.arange(len(rows))}
        grouped = rows.reset_index(drop=True).groupby(conditions, sort=False, observed=True).indices
        named = {tuple(map(str, key if isinstance(key, tuple) else (key,))): at for key, at in grouped.items()}
        return dict(sorted(named.items(), key=lambda item: item[1][0]))

    @cached_property
    def _cache(self) -> dict[tuple[str, ...], Estimate]:
        return {}

    def _estimate(self, key: tuple[str, ...]) -> Estimate:
        if key not in self._cache:
            rows = self.outcomes.rows.iloc[self._index[key]]
            estimate = self.build(rows, ())
            leaf = Leaf(
                self.measure, (*self.outcomes.fixed, *key), estimate.value, frozenset(map(int, rows["model"].unique()))
            )
            self._cache[key] = replace(estimate, leaves=(leaf,))
        return self._cache[key]

    def _known(self, depth: int) -> str:
        known = dict.fromkeys(key[:depth] for key in self._index)
        shown = [", ".join(key) for key in known][:12]
        return "; ".join(shown) + ("; …" if len(known) > 12 else "")


def tidy(rows: pd.DataFrame, conditions: tuple[str, ...]) -> pd.DataFrame:
    """``rows`` in the types that are stored: text as categories, answers as small integers, other numbers halved."""
    columns: dict[str, pd.Series] = {}
    for name in ("model", *conditions, "image", "group"):
        columns[name] = rows[name].astype("int16") if name == "model" else rows[name].astype(str).astype("category")
    for name in rows.columns.difference(list(columns), sort=False):
        values = rows[name] if name not in ANSWERS or name == "margin" else rows[name].fillna(NONE)
        if ANSWERS.get(name) == "int8" and values.max() > 127:
            raise ValueError(f"{name} is up to {values.max()}: a record holds 128 classes at most, 0 to 127")
        columns[name] = values.astype(ANSWERS.get(name, "float16"))
    return pd.DataFrame(columns).reset_index(drop=True)


def encode(rows: pd.DataFrame) -> bytes:
    """``rows`` as one Parquet file, the same bytes for the same rows and library version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    halves = [name for name in rows.columns if rows[name].dtype == np.float16]
    texts = [name for name in rows.columns if isinstance(rows[name].dtype, pd.CategoricalDtype)]
    options = {"compression": "zstd", "compression_level": 19, "use_byte_stream_split": halves}
    buffer = io.BytesIO()
    pq.write_table(table, buffer, use_dictionary=texts, row_group_size=1 << 22, write_statistics=False, **options)
    return buffer.getvalue()


def decode(content: bytes) -> pd.DataFrame:
    """The rows of a Parquet file that `encode` wrote."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(content)).to_pandas()
