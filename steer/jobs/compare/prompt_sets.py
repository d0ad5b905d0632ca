"""Prompt sets: the field's benchmarks, the shapes world, a text file, or a list.

    prompts: hpsv2                                    # 4 styles x 800, the HPS v2 protocol
    prompts: {set: hpsv2, categories: [photo], limit: 100}
    prompts: parti | drawbench | geneval | compbench | compbench:color
    prompts: {set: shapes, limit: 64, split: held_out, seed: 0}
    prompts: my_prompts.txt                           # one per line
    prompts: ["a red circle", "two blue squares"]

`limit` keeps the first so many of every category. Published sets are taken as they are, their few
duplicates included; in a file or a list an empty or repeated prompt is a mistake and refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.core.checks import near
from steer.core.errors import PromptsError
from steer.core.files.text import lines, read_text, read_texts
from steer.jobs.compare.prompts import Prompt, PromptSet
from steer.jobs.compare.published_sets import READERS


SETS = ("shapes", *READERS)
_SHAPES = 64
_OPTIONS = ("set", "categories", "limit", "split", "seed")


def load_prompts(spec: Any) -> PromptSet:
    """The prompt set that `spec` names; see the module.

    Raises:
        PromptsError: Unknown set or option, no such file, no prompts, an empty or repeated prompt,
            or a published file that cannot be had.
    """
    if isinstance(spec, str):
        return _by_name(spec)
    if isinstance(spec, Mapping):
        odd = next((str(key) for key in spec if key not in _OPTIONS), None)
        if odd is not None:
            raise PromptsError(f"prompts: the key {odd!r} is unknown{near(odd, _OPTIONS)}")
        if not isinstance(spec.get("set"), str):
            raise PromptsError(f"prompts={dict(spec)!r}: name the set, as in {{set: hpsv2}}")
        return _by_name(spec["set"], {k: v for k, v in spec.items() if k != "set"})
    if isinstance(spec, Sequence):
        texts = [text.strip() if isinstance(text, str) else text for text in spec]
        _check_own(texts, "prompts")
        return PromptSet("list", tuple(map(Prompt, texts)), "written in the configuration")
    raise PromptsError(f"prompts={spec!r}: a set ({', '.join(SETS)}), a text file, or a list")


def _by_name(name: str, options: Mapping[str, Any] | None = None) -> PromptSet:
    base, _, category = name.partition(":")
    options = dict(options or {})
    if base not in SETS:
        return _limit(_from_file(name), options)
    if category:
        options.setdefault("categories", [category])
    if base == "shapes":
        return _shapes(options)
    _refuse_options(options, ("categories", "limit"), base)
    return _limit(READERS[base](), options)


def _shapes(options: Mapping[str, Any]) -> PromptSet:
    from steer.shapes import prompts as shape_prompts

    _refuse_options(options, ("limit", "split", "seed"), "shapes")
    split, seed = options.get("split", "held_out"), options.get("seed", 0)
    count = _count(options.get("limit", _SHAPES))
    if split not in ("train", "held_out"):
        raise PromptsError(f"prompts: split={split!r}: must be 'train' or 'held_out'")
    if type(seed) is not int or seed < 0:
        raise PromptsError(f"prompts: seed={seed!r}: a whole number, not negative")
    try:
        texts = shape_prompts(split, count, seed)
    except ValueError as error:
        raise PromptsError(f"prompts: limit={count}: {error}") from error
    source = f"captions of the shapes world, split {split!r}, seed {seed}"
    return PromptSet("shapes", tuple(Prompt(t, shape_category(t)) for t in texts), source)


def shape_category(caption: str) -> str:
    """What a caption of the shapes world asks for: `"relation"`, `"two groups"`, ..."""
    from steer.shapes import parse

    spec = parse(caption)
    if spec.relation:
        return "relation"
    if len(spec.groups) == 2:
        return "two groups"
    return "count" if spec.groups[0].count > 1 else "one object"


def _from_file(name: str) -> PromptSet:
    path = Path(name).expanduser()
    if not path.is_file():
        raise PromptsError(
            f"prompts={name!r}: neither a file nor a set{near(name.partition(':')[0], SETS)}, or a "
            "text file with one prompt per line"
        )
    table = path.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv")
    try:
        texts = read_texts(path) if table else [line.strip() for line in lines(read_text(path))]
    except (OSError, ValueError) as error:
        raise PromptsError(f"prompts={name!r}: cannot be read ({error})") from error
    while texts and not texts[-1]:
        texts.pop()
    _check_own(texts, f"prompts={name!r}", "entry" if table else "line")
    return PromptSet(path.name, tuple(map(Prompt, texts)), path.name)


def _check_own(texts: Sequence[Any], what: str, unit: str = "entry") -> None:
    """Raise PromptsError where there are none, or one is empty, no text, or there twice."""
    if not texts:
        raise PromptsError(f"{what}: no prompts; write one per {unit}")
    seen: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text:
            raise PromptsError(f"{what}: {unit} {number} is {text!r}: give a text, or remove it")
        if text in seen:
            raise PromptsError(
                f"{what}: {unit} {number} repeats {unit} {seen[text]} ({text[:60]!r}): the prompt "
                "would count twice; remove it"
            )
        seen[text] = number


def _limit(found: PromptSet, options: Mapping[str, Any]) -> PromptSet:
    prompts, wanted = found.prompts, options.get("categories")
    if wanted is not None:
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        known = list(dict.fromkeys(p.category for p in prompts if p.category is not None))
        odd = next((str(w) for w in wanted if w not in known), None)
        if odd is not None or not wanted:
            raise PromptsError(
                f"prompts: category {odd!r} is not in {found.name!r}{near(str(odd), known)}"
            )
        prompts = tuple(p for p in prompts if p.category in wanted)
    if options.get("limit") is not None:
        limit, counts, kept = _count(options["limit"]), {}, []
        for prompt in prompts:
            counts[prompt.category] = counts.get(prompt.category, 0) + 1
            if counts[prompt.category] <= limit:
                kept.append(prompt)
        prompts = tuple(kept)
    return PromptSet(found.name, prompts, found.source)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise PromptsError(f"prompts: limit={value!r}: how many prompts, at least 1")
    return value


def _refuse_options(options: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    odd = next((key for key in options if key not in known), None)
    if odd is not None:
        raise PromptsError(f"prompts: {odd!r} is no option of {name!r}{near(odd, known)}")
