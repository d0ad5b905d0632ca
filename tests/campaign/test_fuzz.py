"""Public constructors and guided calls with values of every kind: work, or one clear sentence.

hypothesis draws them. What may be raised is steer's own errors and ValueError, with a message; any
other exception is a traceback that a user would have to read.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from campaign_books import CALLS, Books
from hypothesis import HealthCheck, given, settings, strategies as st
from toy import Mixture, Toy, on_points

import steer
import steer.methods
import steer.rewards
from steer.core.errors import SteerError
from steer.core.when import between, every


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 10**6, 0.0, 0.3, 0.5, 1.0, -0.5, 2.5, float("nan"),
    float("inf"), 1e-300, "", "x", "a red circle", b"x", (), (0.5,), (0.7, 0.3), (1,), (2, 1), [],
    ["a"], {}, {"a": 1}, {"shapes": 1.0}, object(), len, every(2), between(0.2, 0.8),
    steer.BestOfN(2), torch.zeros(2), torch.tensor(1.0), {1, 2}, range(3), 1j,
]  # fmt: skip
values = st.sampled_from(range(len(ODD)))


def constructors() -> list[Callable[..., Any]]:
    """Methods, what they are made of, thresholds, mixtures and blends; without models to load."""
    found = [getattr(steer.methods, name) for name in steer.methods.__all__]
    names = ("every", "between", "Threshold")
    found += [getattr(steer, name) for name in names if hasattr(steer, name)]
    found += [getattr(steer.rewards, name) for name in ("AtLeast", "PerFrame")]
    found += [steer.RLG]
    return [one for one in found if callable(one) and one is not steer.methods.Method]


MADE = constructors()


def tried(books: Books, what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, or None where it refuses in one sentence."""
    books.did("fuzzed calls")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except (SteerError, ValueError) as error:
        if not str(error).strip():
            books.found("tracebacks", f"{what}: {error!r} says nothing")
    except Exception as error:
        books.found("tracebacks", f"{what}: {type(error).__name__}: {error}")
    return None


@settings(
    max_examples=max(1, CALLS * 4 // 5),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    which=st.integers(0, len(MADE) - 1),
    picks=st.lists(values, min_size=1, max_size=4),
    at=st.data(),
)
def _constructed(books: Books, which: int, picks: list[int], at: st.DataObject) -> None:
    make = MADE[which]
    known = [
        name
        for name, one in inspect.signature(make).parameters.items()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    needed = [
        name
        for name, one in inspect.signature(make).parameters.items()
        if one.default is one.empty and name in known
    ]
    given_names = list(needed)
    if known:
        chosen = at.draw(st.lists(st.sampled_from(known), max_size=3))
        given_names = list(dict.fromkeys([*needed, *chosen]))
    arguments = {name: ODD[picks[k % len(picks)]] for k, name in enumerate(given_names)}
    tried(books, f"{make.__name__}(**{arguments!r})", lambda: make(**arguments))


def test_constructors(books: Books) -> None:
    _constructed(books)
    books.check()


PIPE = Toy(Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7]), scheduler="ddim")
REWARD = on_points(lambda x: x[:, 0])
METHODS = (None, steer.BestOfN(1), steer.BestOfN(3), steer.Prune(start=3, keep=(1,), at=(0.5,)))
CALL: dict[str, st.SearchStrategy[Any]] = {
    "num_inference_steps": st.sampled_from([1, 2, 3, 0, -1, "x", None, 2.5]),
    "num_images_per_prompt": st.sampled_from([1, 2, 0, -1, None, "x", 1.5]),
    "output_type": st.sampled_from(["latent", "pt", "x", None]),
    "generator": st.sampled_from(["seeded", "list", None, 3, "x", []]),
    "reward_prompt": st.sampled_from([None, "x", ["x"], ["x", "y"], 3, [], [3]]),
    "compute": st.sampled_from([None, 1, 2, 4.5, 0, -1, "x", float("nan")]),
    "method": st.sampled_from([*METHODS, "best-of-n", 3]),
    "eta": st.sampled_from([0.0, 1.0]),
}


def _generator(kind: Any) -> Any:
    one = torch.Generator().manual_seed(0)
    return one if kind == "seeded" else [one] if kind == "list" else kind


@settings(
    max_examples=max(1, CALLS // 5),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    prompt=st.sampled_from(["a", "", ["a", "b"], ["a"], [], 3, [3], "\x1b[31m"]),
    chosen=st.fixed_dictionaries({}, optional=CALL),
)
def _called(books: Books, prompt: Any, chosen: dict[str, Any]) -> None:
    wrapped = steer.guided(PIPE, REWARD)
    arguments = {"num_inference_steps": 2, **chosen}
    if "generator" in arguments:
        arguments["generator"] = _generator(arguments["generator"])
    scheduler, what = PIPE.scheduler, f"guided(...)({prompt!r}, **{arguments!r})"
    out = tried(books, what, lambda: wrapped(prompt, **arguments))
    if PIPE.scheduler is not scheduler or {"prepare_latents", "progress_bar"} & set(vars(PIPE)):
        books.found("silently_wrong", f"{what} leaves a stand-in")
    if out is None:
        return
    count = 1 if isinstance(prompt, str) else len(prompt)
    wanted = count * arguments.get("num_images_per_prompt", 1)
    if len(out.rewards) != wanted or len(out.images) != wanted:
        books.found(
            "silently_wrong", f"{what}: {len(out.images)} images, {len(out.rewards)} rewards"
        )
    if not all(map(torch.isfinite, map(torch.tensor, out.rewards))):
        books.found("silently_wrong", f"{what}: rewards {out.rewards}")


def test_guided_calls(books: Books) -> None:
    _called(books)
    books.check()
