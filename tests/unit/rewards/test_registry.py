"""Specs to rewards: names, functions, weights, objects; and the errors for all else."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

import steer
from steer.core.errors import RewardError
from steer.core.types import Reward
from steer.rewards import (
    available_rewards,
    names as names_module,
    register_reward,
    resolve,
    reward,
)
from steer.rewards.base import WeightedReward
from steer.rewards.function import FunctionReward


IMAGES = torch.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
PROMPTS = ["a", "bbb"]


def brightness(images, prompts):
    return images.mean((1, 2, 3))


brightness.differentiable = True
brightness.range = (0.0, 1.0)
brightness.needs_prompt = False


def length(images, prompts):
    return [len(prompt) for prompt in prompts]


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    monkeypatch.setattr(names_module, "_registered", {})


def test_a_function_keeps_what_it_declares():
    wrapped = reward(brightness)
    assert isinstance(wrapped, Reward)
    assert wrapped.name == "brightness"
    assert (wrapped.differentiable, wrapped.range, wrapped.needs_prompt) == (True, (0, 1), False)
    plain = reward(length)
    assert (plain.differentiable, plain.range, plain.needs_prompt) == (
        False,
        (-float("inf"), float("inf")),
        True,
    )
    assert plain(IMAGES, PROMPTS).tolist() == [1, 3]
    assert reward(length, name="words", differentiable=True, batch=1).name == "words"


def test_a_fully_declared_function_is_still_checked():
    def declared(images, prompts):
        return images.mean()

    declared.name, declared.differentiable = "mine", True
    declared.range, declared.needs_prompt = (0, 1), False
    assert reward(declared).name == "mine"
    with pytest.raises(RewardError):
        reward(declared)(IMAGES, PROMPTS)


def test_a_function_of_images_alone_is_refused():
    with pytest.raises(ValueError, match=r"signature \(images\): it must take \(images, prompts\)"):
        reward(lambda images: images.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda i, p: i.mean(), r"returned \(\) for 2 images"),
        (lambda i, p: i.mean((2, 3)), r"returned \(2, 3\) for 2 images"),
        (lambda i, p: [0.5], r"returned \(1,\) for 2 images"),
        (lambda i, p: None, r"returned NoneType"),
        (lambda i, p: "good", r"returned str"),
    ],
)
def test_wrong_results_are_named(result, message):
    with pytest.raises(RewardError, match=message):
        reward(result)(IMAGES, PROMPTS)
    with pytest.raises(RewardError, match=message):
        reward({result: 1.0})(IMAGES, PROMPTS)


def test_weights_give_the_sum_and_its_parts():
    both = reward({brightness: 0.5, length: 2})
    parts = both.parts(IMAGES, PROMPTS)
    assert list(parts) == ["brightness", "length"]
    expected = 0.5 * IMAGES.mean((1, 2, 3)) + 2 * torch.tensor([1.0, 3.0])
    assert torch.allclose(both(IMAGES, PROMPTS), expected)
    assert torch.allclose(both.combine(parts), expected)
    assert both.name == "brightness=0.5,length=2"
    assert (both.differentiable, both.needs_prompt) == (False, True)
    assert reward({brightness: -2}).range == (-2, 0)


def test_arithmetic():
    b, n = reward(brightness), reward(length)
    total = 0.5 * b + n * 2 - (b - n)
    value = -0.5 * IMAGES.mean((1, 2, 3)) + 3 * torch.tensor([1.0, 3.0])
    assert torch.allclose(total(IMAGES, PROMPTS), value)
    assert list(total.weights) == ["brightness", "length", "brightness#2", "length#2"]
    assert torch.allclose((-b)(IMAGES, PROMPTS), -b(IMAGES, PROMPTS))


def test_weight_zero_only_reports():
    reported = reward({brightness: 1, length: 0})
    assert reported.differentiable
    assert reported.range == (0, 1)
    assert list(reported.parts(IMAGES, PROMPTS)) == ["brightness", "length"]
    images = IMAGES.clone().requires_grad_()
    reported(images, PROMPTS).sum().backward()
    assert images.grad is not None


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None, True])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match="must be a finite number"):
        reward({brightness: weight})


def test_empty_weights():
    with pytest.raises(ValueError, match="needs a part"):
        reward({})


def test_names_in_weights_and_device(folder_model):
    folder, _ = folder_model
    name = f"clip:local-dir:{folder}"
    both = resolve({name: 0.7, brightness: 0.3}, device="cpu")
    assert isinstance(both, WeightedReward)
    assert list(both.parts(IMAGES, PROMPTS[:1] * 2)) == [name, "brightness"]


def test_objects_come_back_as_they_are():
    made = reward(brightness)
    assert reward(made) is made
    assert resolve(made, device="cpu") is made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hpsv21", r"reward='hpsv21' is unknown; did you mean 'hpsv2\.?1?'\? there are aesth"),
        ("Shapes", "did you mean 'shapes'"),
        ("zzz", r"unknown; there are .*clip:\*, .*hpsv2, hpsv2\.0, .*shapes, shapes-clip"),
        ("clip", r"lacks its model: write 'clip:<model>'"),
        ("clip:", r"lacks its model"),
        ("clop:ViT-B-32", r"did you mean 'clip:\*'"),
        ("shapes:big", r"unknown"),
        ("clip:ViT-B-33", r"no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ("clip:ViT-B-32", r"no weights are named; add one, as in 'clip:ViT-B-32:openai'"),
        ("clip:ViT-B-32:nope", r"'nope' is neither a file nor a tag of ViT-B-32"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        steer.reward(name)


@pytest.mark.parametrize("spec", [None, 3, int, ["hpsv2"]])
def test_other_specs(spec):
    with pytest.raises(ValueError, match="pass a function"):
        reward(spec)


def test_misplaced_options():
    with pytest.raises(ValueError, match="got an unexpected keyword argument 'size'; its options"):
        reward("shapes", size=3)
    with pytest.raises(ValueError, match="checkpoint= does not apply to a function"):
        reward(brightness, checkpoint="x.pt")
    with pytest.raises(ValueError, match="batch= does not apply to a dict"):
        reward({brightness: 1.0}, batch=3)
    with pytest.raises(ValueError, match="batch=0"):
        reward(brightness, batch=0)
    with pytest.raises(ValueError, match="dtype='half-ish': one of"):
        reward("shapes", dtype="half-ish")


def test_registering_functions_and_classes():
    @register_reward("contrast", differentiable=True, range=(0, 1))
    def spread(images, prompts):
        return images.flatten(1).std(1)

    @register_reward("always:*")
    class Always:
        differentiable, range, needs_prompt = False, (0.0, 9.0), False

        def __init__(self, value, *, factor=1.0):
            self.name, self.value = f"always:{value}", float(value) * factor

        def __call__(self, images, prompts):
            return torch.full((len(images),), self.value)

    assert {"contrast", "always:*", "hpsv2"} <= set(available_rewards())
    assert isinstance(reward("contrast"), FunctionReward)
    assert (reward("contrast").name, reward("contrast").differentiable) == ("contrast", True)
    assert resolve("always:3", device="cpu")(IMAGES, PROMPTS).tolist() == [3, 3]
    assert reward("always:3", factor=2)(IMAGES, PROMPTS).tolist() == [6, 6]
    with pytest.raises(ValueError, match="its options are factor"):
        reward("always:3", size=2)
    assert reward({"always:2": 1, "contrast": 0})(IMAGES, PROMPTS).tolist() == [2, 2]


@pytest.mark.parametrize("option", ["scale", "minimum", "penalty"])
def test_an_option_that_is_kept_here_never_hides_the_rewards_own(option):
    made = type("Own", (), {"name": "own", "differentiable": False, "range": (0, 1)})
    made.needs_prompt, made.__call__ = False, lambda self, images, prompts: images.mean((1, 2, 3))
    namespace = {}
    exec(f"def __init__(self, *, {option}=1.0):\n    self.given = {option}", namespace)
    made.__init__ = namespace["__init__"]
    register_reward("own-option")(made)
    given = {"minimum": {"shapes": 0.5}}.get(option, 2.0)
    with pytest.raises(ValueError, match=f"^{option}= is an option of reward 'own-option', and of"):
        reward("own-option", **{option: given})
    assert reward(made(**{option: 2.0})).given == 2.0


def test_built_in_rewards_have_no_option_that_is_kept():
    for name, place in names_module.BUILT_IN.items():
        options = set(inspect.signature(names_module._load(place)).parameters)
        assert not options & {"scale", "minimum", "penalty"}, name


@pytest.mark.parametrize("name", ["hpsv2", "clip:mine", ""])
def test_taken_names(name):
    with pytest.raises(ValueError, match="built in or empty"):
        register_reward(name)


def test_entry_points(monkeypatch):
    points = [
        EntryPoint("theirs", "tests_plugin:make", "steer.rewards"),
        EntryPoint("broken", "no_such_module_here:make", "steer.rewards"),
    ]
    module = type(sys)("tests_plugin")
    module.make = lambda *, device=None: FunctionReward(brightness, name="theirs")
    monkeypatch.setitem(sys.modules, "tests_plugin", module)
    monkeypatch.setattr(
        names_module,
        "entry_points",
        lambda group, name=None: [p for p in points if name in (None, p.name)],
    )
    assert "theirs" in available_rewards()
    assert resolve("theirs", device="cpu").name == "theirs"
    with pytest.raises(ValueError, match=r"'broken' .* does not load"):
        reward("broken")


def test_names_are_lazy():
    code = (
        "import sys, steer; steer.reward(lambda images, prompts: images.mean((1, 2, 3)));"
        "sys.exit(any(m.split('.')[0] in ('open_clip', 'transformers') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
