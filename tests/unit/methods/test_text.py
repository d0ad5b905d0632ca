"""Every method as text, from its own repr and from YAML: one grammar, equal objects."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

from steer import methods
from steer.core.when import at, between, every
from steer.methods import (
    PCNL,
    RBF,
    SMC,
    Adaptive,
    Beam,
    BestOfN,
    BestOfNGuidance,
    Blockwise,
    Budget,
    DepthFirst,
    EvoSearch,
    Gate,
    GradientProposal,
    Guide,
    LookaheadGuidance,
    Method,
    NoiseOptimization,
    NoiseSearch,
    NoiseTilt,
    Prune,
    ReNO,
    Rho,
    Sphere,
    Then,
    Tree,
    ZeroOrder,
)
from steer.methods.text import is_bare, method_option, parse_method, read_yaml
from steer.rewards import Prior
from steer.search.lookahead import LookaheadSet


WHEN = every(4) & between(0.25, 0.75) | at(0.9)
EVERY_ONE = [
    BestOfN(16),
    Adaptive(16, price=0.1, prior=Prior(0.3, 0.02, knots=(0.2, 0.4), spread=0.1), share=True),
    Prune(start=8, keep=(4, 2), at=(0.25, 0.5)),
    Prune(start=15, keep=(8, 2), at=(0.65, 0.7), strides=5),
    SMC(8, lam=3.0, when=WHEN, potential="max", resample="ssp", ess=None, temper="adaptive"),
    SMC(4, proposal=GradientProposal(lam=2.0, pull=None, through="x0", when=every(2))),
    SMC(2, kernel=NoiseTilt(0.2, block=64, through="denoiser", when=between(0.1, 0.6))),
    PCNL(SMC(8, when=every(4)), lam=5.0, chains=4, burn_in=6, thin=3, pull=None, through=2),
    Beam((8, 4, 2), candidates=3, lookahead=2, when=between(0.3, 1.0)),
    Blockwise((2, 8), block=4, kernel="ddim"),
    Blockwise(2, kernel=Rho("constant", 0.4, inner=4, noise_window=(0.2, 0.9))),
    RBF(8, threshold=(0.3, 0.5), batch=2, kernel="ddim"),
    EvoSearch((8, 4, 4), at=(0.0, 0.5), elites=2, mutation=0.3),
    DepthFirst(4.0, threshold=(0.4, 0.5, 0.6), at=(0.5, 0.7), depth=0.3),
    Tree(compute=16, widen=(2.0, 0.8), at=(0.3, 0.6)),
    NoiseSearch(n=8, rounds=4, strategy="evolution", elites=4, through=4),
    NoiseOptimization(iterations=5, through=None, ascent=ReNO(step=3.0), monitor="clip"),
    NoiseOptimization(4, ascent=Sphere(step=0.2, block=64), leash=2.0),
    NoiseOptimization(3, ascent=Sphere(max_angle=30.0), gradient=ZeroOrder(directions=2)),
    Guide(BestOfN(2), strength=0.2, when=at(0.5, 0.6), through="denoiser", schedule="noise"),
    Guide(Prune(6, (3,), (0.5,)), strength=0.2, when=between(0.5, 0.7)),
    BestOfNGuidance(4, pull=0.5, when=between(0.4, 0.44)),
    LookaheadGuidance(n=2, lookaheads=16, through=4),
    Gate(SMC(4, when=every(2)), threshold=0.6, max_rounds=3, on_reject="raise"),
    Budget(8, Tree(iterations=64)),
    Then(BestOfN(8), NoiseOptimization(iterations=4, starts=2)),
]
PARTS = (GradientProposal, NoiseTilt, ReNO, Rho, Sphere, ZeroOrder)
INSIDE = (*PARTS, Prior)


def as_yaml(value: Any) -> Any:
    """What a person would write: one key per object, text for step predicates."""
    if isinstance(value, (Method, *INSIDE)):
        own = {f.name: as_yaml(getattr(value, f.name)) for f in fields(value)}  # pyright: ignore
        return {type(value).__name__: own}
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def test_nothing_is_left_out() -> None:
    exported = {getattr(methods, name) for name in methods.__all__ if name[0].isupper()}
    assert exported - {Method} == {type(method) for method in EVERY_ONE} | {*PARTS}


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda m: type(m).__name__)
def test_every_method_from_its_own_repr(method: Any) -> None:
    assert parse_method(repr(method)) == method


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda m: type(m).__name__)
def test_every_method_from_a_name_and_arguments(method: Any) -> None:
    name, _, rest = repr(method).partition("(")
    text = method_option(name.lower(), rest.removesuffix(")"))
    assert text is not None and parse_method(text) == method


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda m: type(m).__name__)
def test_every_method_from_yaml(method: Any, tmp_path: Path) -> None:
    file = tmp_path / "method.yaml"
    file.write_text(yaml.safe_dump(as_yaml(method)))
    content = method_option(str(file))
    assert content is not None and parse_method(content) == method


counts, shares = st.integers(1, 64), st.floats(0.01, 0.99)
windows = st.recursive(
    st.builds(every, counts)
    | st.lists(shares, min_size=2, max_size=2, unique=True).map(lambda p: between(*sorted(p)))
    | st.lists(shares | st.integers(0, 40), min_size=1, max_size=3).map(lambda p: at(*p)),
    lambda inner: (
        st.tuples(inner, inner).map(lambda p: p[0] & p[1])
        | st.tuples(inner, inner).map(lambda p: p[0] | p[1])
    ),
    max_leaves=4,
)
texts = st.none() | st.text()
ascents = st.builds(Sphere, shares, shares, st.none() | shares) | st.builds(ReNO, shares, shares)
simple = st.one_of(
    st.builds(BestOfN, counts),
    st.builds(
        Prune, st.just(64), st.tuples(counts), st.tuples(shares), st.none() | st.integers(2, 9)
    ),
    st.builds(SMC, counts, lam=shares, when=windows, ess=st.none() | shares),
    st.builds(
        NoiseOptimization, counts, st.none() | counts, ascents, monitor=st.none() | st.text()
    ),
    st.builds(BestOfNGuidance, counts, pull=shares, when=windows),
)
nested = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(Guide, inner, shares, windows, schedule=st.sampled_from(["constant", "noise"])),
        st.builds(Gate, inner, st.floats(allow_nan=False, allow_infinity=False), counts),
        st.builds(Budget, st.floats(1, 99), inner),
    ),
    max_leaves=3,
)


@settings(max_examples=200, deadline=None)
@given(method=nested)
def test_any_method_from_its_repr_and_from_yaml(method: Any) -> None:
    assert parse_method(repr(method)) == method
    assert parse_method(yaml.safe_load(yaml.safe_dump(as_yaml(method)))) == method


def test_a_bare_name_takes_its_size_from_compute() -> None:
    assert parse_method("best-of-n", 6.5) == BestOfN(6)
    assert parse_method("prune", 4, 20) == Prune.for_compute(4, 20)
    assert is_bare(" smc ") and not is_bare("smc(8)") and not is_bare({"smc": None})
    with pytest.raises(ValueError, match=r"method='gate': .*write its arguments out \(method, thr"):
        parse_method("gate")


def test_methods_that_read_files(tmp_path: Path) -> None:
    """A calibration and a lookahead set are named by their paths."""
    path = tmp_path / "ahead.safetensors"
    LookaheadSet({"a": torch.zeros(2, 4, 1, 1)}, {"a": torch.zeros(2)}, ("x", "")).save(path)
    made: Any = parse_method(f"lookahead-guidance(2, lookahead={str(path)!r})")
    assert isinstance(made.lookahead, LookaheadSet)
    with pytest.raises(ValueError, match="no-such-file"):
        parse_method("gate(best-of-n(4), calibration='no-such-file.json')")


@pytest.mark.parametrize("text", ["every(4)", "reno()", "method()", "4"])
def test_what_is_no_method(text: str) -> None:
    with pytest.raises(ValueError, match="there are Adaptive, Beam, BestOfN"):
        parse_method(text)


@pytest.mark.parametrize(
    ("content", "method"),
    [
        ("SMC:\n  n: 8\n  when: every(4) & between(0.25, 0.75)\n",
         SMC(8, when=every(4) & between(0.25, 0.75))),
        ("smc(8, lam=2.0)\n", SMC(8, lam=2.0)),
        ("beam:\n", Beam()),
        ("gate:\n  method:\n    best-of-n: {n: 4}\n  threshold: 0.6\n", Gate(BestOfN(4), 0.6)),
        ("gate:\n  method: best-of-n(4)\n  threshold: 0.6\n", Gate(BestOfN(4), 0.6)),
        ("noise-optimization:\n  ascent: reno(step=2.0)\n", NoiseOptimization(ascent=ReNO(2.0))),
    ],
)  # fmt: skip
def test_yaml_as_people_write_it(content: str, method: Any, tmp_path: Path) -> None:
    file = tmp_path / "method.yml"
    file.write_text(content)
    assert parse_method(read_yaml(file)) == method


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not YAML"),
        ("- 1\n- 2\n", "one method by its name"),
        ("SMC: {n: 8}\nBeam: {}\n", "one method by its name"),
        ("", "one method by its name"),
        ("SMC: {n: {a: 1, b: 2}}\n", "is no argument"),
        ("SCM: {n: 8}\n", "did you mean 'SMC'"),
        ("SMC: {n: 8, lamb: 2}\n", "unexpected keyword argument 'lamb'"),
        ("SMC: {n: 0}\n", "n=0: must be a whole number"),
        ("SMC: {n: 8, when: every(x)}\n", "'x' is not a number"),
        ("every: {k: 4}\n", "not a method"),
    ],
)
def test_yaml_that_is_no_method(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "method.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        parse_method(method_option(str(file)) or "")


def test_arguments_need_one_place(tmp_path: Path) -> None:
    assert method_option(None) is None
    assert method_option("smc") == "smc"
    assert method_option(" SMC(8) ") == "SMC(8)"
    with pytest.raises(ValueError, match="of which method"):
        method_option(None, "n=8")
    with pytest.raises(ValueError, match="in one place"):
        method_option("smc(8)", "lam=2.0")
    file = tmp_path / "method.yaml"
    file.write_text("SMC: {n: 8}\n")
    with pytest.raises(ValueError, match="in one place"):
        method_option(str(file), "lam=2.0")
    file.write_text("smc\n")
    assert method_option(str(file), "n=8") == "smc(n=8)"
