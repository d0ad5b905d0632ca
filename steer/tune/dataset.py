"""Reads the folders that training learns from: scored latents, pairs, text features.

The format is described in docs/tune.md. Nothing but the tables is held in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import TuneError
from steer.tune.dataset_checks import check_index, check_score, pairs_of
from steer.tune.shards import Shards, open_shard
from steer.tune.tables import (
    FORMAT,
    INDEX,
    MANIFEST,
    PAIRS,
    PROMPT_IDS,
    SHARED,
    UNCOND,
    Images,
    Pairs,
    list_names,
    read_columns,
)


LATENTS = "latents"
_TEXT_FILE = re.compile(r"text-\d+\.safetensors")

Rows = Sequence[int] | NDArray[np.int64]


class Dataset:
    """A dataset folder, checked when loaded.

    Attributes:
        folder: Where it is.
        manifest: The contents of `manifest.json`: provenance.
        ids: N names of images, all different.
        prompts: N prompts; `prompt_ids` (N,) their numbers.
        scores: (N,) float64, the main reward.
        split: (N,) `"train"` or `"test"`.
        pairs: The preferences, or None.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], index: dict[str, Any]) -> None:
        self.folder, self.manifest, self._index = folder, manifest, index
        images = Images(
            [str(name) for name in index["id"]],
            [str(text) for text in index["prompt"]],
            np.asarray(index["prompt_id"], dtype=np.int64),
            np.asarray(index["split"], dtype=np.str_),
        )
        self.ids, self.prompts = images.ids, images.prompts
        self.prompt_ids, self.split = images.prompt_ids, images.split
        self.scores = self.score()
        check_index(folder, images, manifest.get("count", len(images)))
        files = sorted(set(index["shard"]))
        position = {name: i for i, name in enumerate(files)}
        file_of = np.array([position[name] for name in index["shard"]], dtype=np.int64)
        row_of = np.asarray(index["row"], dtype=np.int64)
        self._latents = Shards(folder, files, file_of, row_of, [LATENTS])
        self._text, self._text_row = _text(folder, self.prompt_ids)
        self._check_shape()
        self.pairs: Pairs | None = self._read_pairs(images)

    @classmethod
    def load(cls, folder: str | Path) -> Dataset:
        """The dataset in `folder`.

        Raises:
            TuneError: It is missing, unfinished, of another format, damaged or inconsistent; the
                message names the file and what is wrong.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        return cls(folder, manifest, read_columns(folder / INDEX, _COLUMNS))

    def __len__(self) -> int:
        return len(self.ids)

    def score(self, column: str = "score") -> NDArray[np.float64]:
        """(N,) a column of scores: `"score"`, or `"score_<name>"` of a further reward.

        Raises:
            TuneError: There is no such column, or it holds NaN or infinity.
        """
        if column not in self._index:
            known = [name for name in self._index if name.startswith("score")]
            raise TuneError(f"score={column!r}: the dataset has {', '.join(known)}")
        values = np.array(
            [np.nan if v is None else v for v in self._index[column]], dtype=np.float64
        )
        check_score(column, values, self.ids)
        return values

    @property
    def has_search(self) -> bool:
        """Whether it was made with a search."""
        return "searched" in self._index

    @property
    def searched(self) -> NDArray[np.bool_]:
        """(N,) whether a search found the image; False for plain samples.

        Raises:
            TuneError: The dataset was made without a search.
        """
        if not self.has_search:
            raise TuneError(
                f"targets='winners': {str(self.folder)!r} was made without a search; make it with "
                "search: {compute: 4}, or leave targets out"
            )
        return np.asarray(self._index["searched"], dtype=np.bool_)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image's latents, as the denoiser sees them."""
        return self._latents.shapes[LATENTS]

    @property
    def has_uncond(self) -> bool:
        """Whether there are features of the empty prompt, for text dropout."""
        return (self.folder / UNCOND).is_file()

    def latents(self, rows: Rows) -> Tensor:
        """(len(rows), *latent_shape), as stored, on the CPU."""
        return self._latents.read(LATENTS, rows)

    def text(self, rows: Rows) -> dict[str, Tensor]:
        """Text features of the images' prompts by (dotted) denoiser argument: (len(rows), ...)."""
        at = [self._text_row[int(self.prompt_ids[row])] for row in rows]
        return {name: self._text.read(name, at) for name in self._text.names}

    @cached_property
    def uncond(self) -> dict[str, Tensor]:
        """Features of the empty prompt: (1, ...) each.

        Raises:
            TuneError: The dataset has none, or they do not fit those of the prompts.
        """
        if not self.has_uncond:
            raise TuneError(
                f"text_dropout: {str(self.folder)!r} has no {UNCOND}; make the dataset with the "
                "features of the empty prompt, or set text_dropout: 0"
            )
        found = _all(self.folder / UNCOND)
        shapes = {name: tuple(value.shape[1:]) for name, value in found.items()}
        if shapes != self._text.shapes:
            raise TuneError(
                f"{str(self.folder / UNCOND)!r}: has {shapes}, the prompts' features are "
                f"{self._text.shapes}; both must have the same names and shapes"
            )
        return found

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        """Denoiser arguments without a prompt dimension, such as Flux's `img_ids`."""
        path = self.folder / SHARED
        return _all(path) if path.is_file() else {}

    def _check_shape(self) -> None:
        stated = tuple(self.manifest.get("latent_shape", self.latent_shape))
        if stated != self.latent_shape:
            raise TuneError(
                f"{str(self.folder / MANIFEST)!r}: latent_shape is {stated}, the shards hold "
                f"{self.latent_shape}; make the dataset again"
            )

    def _read_pairs(self, images: Images) -> Pairs | None:
        path = self.folder / PAIRS
        if not path.is_file():
            if self.manifest["kind"] == "pairs":
                raise TuneError(f"{str(path)!r}: missing from a dataset of kind 'pairs'")
            return None
        table = read_columns(path, ("winner", "loser", "prompt_id", "margin"))
        return pairs_of(images, table, self.latents)


_COLUMNS = ("id", "prompt", "prompt_id", "seed", "shard", "row", "score", "split")


def _manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise TuneError(f"data={str(folder)!r}: no such folder; make one with `steer tune data`")
    if not path.is_file():
        raise TuneError(
            f"data={str(folder)!r}: holds no {MANIFEST}, so it is unfinished or no dataset; "
            "`steer tune data` makes one, and continues one that was interrupted"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TuneError(f"{str(path)!r}: cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise TuneError(f"{str(path)!r}: not a {FORMAT} manifest; make the dataset again")
    if manifest.get("kind") not in ("scored", "pairs"):
        raise TuneError(f"{str(path)!r}: kind={manifest.get('kind')!r}: 'scored' or 'pairs'")
    return manifest


def _text(folder: Path, prompt_ids: NDArray[np.int64]) -> tuple[Shards, dict[int, int]]:
    """The text features, and the row among them of every prompt's number."""
    files = sorted(p.name for p in folder.iterdir() if _TEXT_FILE.fullmatch(p.name))
    if not files:
        raise TuneError(f"data={str(folder)!r}: no text-00000.safetensors with text features")
    file_of, row_of, row_by_prompt, names = [], [], {}, None
    for i, file in enumerate(files):
        handle = open_shard(folder / file)
        if PROMPT_IDS not in handle.keys():  # noqa: SIM118 (not a mapping)
            raise TuneError(f"{str(folder / file)!r}: holds no tensor {PROMPT_IDS!r}")
        names = names or [name for name in handle.keys() if name != PROMPT_IDS]  # noqa: SIM118
        for row, prompt in enumerate(handle.get_tensor(PROMPT_IDS).tolist()):
            row_by_prompt[int(prompt)] = len(file_of)
            file_of.append(i)
            row_of.append(row)
    lost = [int(p) for p in np.unique(prompt_ids) if int(p) not in row_by_prompt]
    if lost:
        raise TuneError(
            f"data={str(folder)!r}: no text features for prompt_id {list_names(lost)}; make it "
            "again"
        )
    as_array = (np.array(file_of, dtype=np.int64), np.array(row_of, dtype=np.int64))
    return Shards(folder, files, *as_array, names or []), row_by_prompt


def _all(path: Path) -> dict[str, Tensor]:
    handle = open_shard(path)
    return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
