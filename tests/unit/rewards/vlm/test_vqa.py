"""VQAScore against plain forward passes: one image, one question, no padding, the whole softmax.

Qwen's own processors round to 8 bits after the resize and the reward does not, so that their scores
agree to a share of `ROUNDED` only; all others agree to rounding errors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import vlm_models
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import steer
from steer.core.errors import CheckpointError, RewardError
from steer.rewards.vlm.vqa import vqa


QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ROUNDED = 0.02
YES = ("Yes", "yes", " Yes", " yes")
NO = ("No", "no", " No", " no")
PROMPTS = ["a red circle", "a", "a blue square left of a red circle", "a blue circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("vlm")
    return {kind: vlm_models.save(kind, base / kind) for kind in vlm_models.KINDS}


@pytest.fixture(scope="module", params=list(vlm_models.KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def reward(folders, kind):
    return vqa(str(folders[kind]), device="cpu")


def eight_bit(count: int, height: int = 40, width: int = 60, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 6, generator=noise)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (large * 255).round() / 255


class Plain:
    """The reference: one pair at a time, as the models' own pages show it."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.mark = {"llava": "<image>", "paligemma": "<image>", "blip2": ""}.get(folder.name)

    def next(self, image: Tensor, text: str, start: tuple[str, ...] = ()) -> Tensor:
        """Probabilities `(V,)` of the token after the question and `start`."""
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels)
        prompt = f"{self.mark}{text}"
        if self.processor.chat_template:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            talk = [{"role": "user", "content": content}]
            prompt = self.processor.apply_chat_template(talk, add_generation_prompt=True)
        inputs = self.processor(images=picture, text=prompt, return_tensors="pt")
        inputs.pop("labels", None)
        ids = [vlm_models.token(word) for word in start]
        if "blip2" in type(self.model).__name__.lower():
            inputs["decoder_input_ids"] = torch.tensor([[0, *ids]])
        elif ids:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            for name in {"mm_token_type_ids", "token_type_ids"} & set(inputs):
                more = torch.zeros(1, len(ids), dtype=torch.long)
                inputs[name] = torch.cat([inputs[name], more], 1)
        with torch.no_grad():
            return self.model(**inputs).logits[0, -1].double().softmax(-1)

    def sum(self, images: Tensor, prompts: list[str], words: tuple[str, ...]) -> Tensor:
        """The probability `(B,)` of any of the words, after the question."""
        found = [
            self.next(image, QUESTION.format(prompt))
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return torch.stack(found)[:, [vlm_models.token(word) for word in words]].sum(1)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        yes, no = (self.sum(images, prompts, words) for words in (YES, NO))
        return yes / (yes + no)


def near(kind: str) -> float:
    return ROUNDED if kind in QWEN else 1e-4


@pytest.fixture(scope="module")
def plain(folders, kind) -> Plain:
    return Plain(folders[kind])


def test_batches_of_unequal_questions_score_as_single_ones(reward, plain, kind):
    images = eight_bit(4)
    got, expected = reward(images, PROMPTS), plain.score(images, PROMPTS)
    assert got.dtype == torch.float32 and got.shape == (4,)
    assert torch.allclose(got.double(), expected, rtol=near(kind), atol=1e-7)
    assert expected.std() / expected.mean() > 2 * near(kind)  # image or question must matter


def test_images_matter_and_questions_matter(reward):
    images = eight_bit(3)
    same_prompt = reward(images, PROMPTS[0])
    same_image = reward(images[:1].expand(3, -1, -1, -1), PROMPTS[:3])
    assert len(same_prompt.unique()) == 3 and len(same_image.unique()) == 3


def test_absolute_is_yes_among_all_words(folders, kind, plain):
    reward = vqa(str(folders[kind]), device="cpu", normalise=False)
    assert reward.name.endswith("-absolute")  # another scale, so another name
    images = eight_bit(3)
    expected = plain.sum(images, PROMPTS[:3], YES)
    assert torch.allclose(reward(images, PROMPTS[:3]).double(), expected, rtol=near(kind))


@pytest.mark.parametrize("kind", QWEN, scope="module")
def test_the_gradient_of_a_qwen_model_is_the_slope(folders, kind):
    reward = vqa(str(folders[kind]), device="cpu", dtype=torch.float64)
    images = eight_bit(2).double().mul(0.9).add(0.05).requires_grad_()
    scores = reward(images, PROMPTS[:2])
    (slope,) = torch.autograd.grad(scores.sum(), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
    step = 1e-3  # scores are float32
    with torch.no_grad():
        ahead, behind = (reward.score(images + s * way, PROMPTS[:2]) for s in (step, -step))
    expected = (ahead.double() - behind.double()).sum() / (2 * step)
    assert expected.abs() > 1e-4
    assert torch.isclose((slope * way).sum(), expected, rtol=0.02)


def test_micro_batches_do_not_matter(folders, kind, reward):
    images = eight_bit(4)
    for batch in (1, 3):
        got = vqa(str(folders[kind]), device="cpu", batch=batch)(images, PROMPTS)
        assert torch.allclose(got, reward(images, PROMPTS), rtol=1e-4, atol=1e-7)


def test_padding_on_the_left_is_read_at_the_right_place(folders, kind):
    if kind != "paligemma":
        pytest.skip("moves absolute positions, or is not where a Qwen model is padded")
    reward = vqa(str(folders[kind]), device="cpu", dtype=torch.float64)
    images = eight_bit(4)
    right = reward(images, PROMPTS)
    reward.answerer.tokenizer.padding_side = "left"
    try:
        left = reward(images, PROMPTS)
    finally:
        reward.answerer.tokenizer.padding_side = "right"
    assert torch.allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llava", "blip2"], scope="module")
def test_answers_of_several_tokens_are_products(folders, kind):
    several = ["Yes left of", "No yes of"]
    reward = vqa(str(folders[kind]), device="cpu", yes=several, normalise=False)
    plain, images = Plain(folders[kind]), eight_bit(3)
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=False):
        total = 0.0
        for words in (("Yes", " left", " of"), ("No", " yes", " of")):
            chances = [
                plain.next(image, QUESTION.format(prompt), words[:i])[vlm_models.token(word)]
                for i, word in enumerate(words)
            ]
            total += math.prod(float(chance) for chance in chances)
        expected.append(total)
    got = reward(images, PROMPTS[:3]).double()
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=0)


def test_longer_spellings_and_equal_ones_are_left_out(folders):
    one = vqa(str(folders["llava"]), device="cpu", yes=["Yes"])
    more = vqa(str(folders["llava"]), device="cpu", yes=["Yes", "Yes", "Yes left"])
    assert more.yes == one.yes == [(vlm_models.token("Yes"),)]


def test_a_vocabulary_that_splits_yes_is_refused(folders, monkeypatch):
    answerer = vqa(str(folders["llava"]), device="cpu").answerer
    split = {"Yes": (5, 6), "yes": (5, 7), " Yes": (8, 5, 6), " yes": (8, 5, 7)}
    whole = answerer.tokens
    monkeypatch.setattr(answerer, "tokens", lambda text: split.get(text) or whole(text))
    with pytest.raises(ValueError, match=r"yes=\['Yes'.*splits each of them into several tokens"):
        vqa(str(folders["llava"]), device="cpu")
    asked = vqa(str(folders["llava"]), device="cpu", yes=["Yes"])  # the caller knows
    assert asked.yes == [(5, 6)]


def test_a_bare_space_does_not_count(folders, monkeypatch):
    answerer = vqa(str(folders["llava"]), device="cpu").answerer
    space, whole = 13, answerer.tokens
    monkeypatch.setattr(
        answerer, "tokens", lambda t: (space, *whole(t[1:])) if t[0] == " " else whole(t)
    )
    reward = vqa(str(folders["llava"]), device="cpu")
    assert reward.yes == [(vlm_models.token("Yes"),), (vlm_models.token("yes"),)]


def test_mixed_image_sizes(folders, kind, plain):
    reward = vqa(str(folders[kind]), device="cpu")
    images = [eight_bit(1, 40, 60)[0], eight_bit(1, 56, 32, seed=1)[0]]
    expected = torch.cat([plain.score(x[None], [p]) for x, p in zip(images, PROMPTS, strict=False)])
    assert torch.allclose(reward(images, PROMPTS[:2]).double(), expected, rtol=near(kind))


def test_other_questions_and_template_variables(folders):
    images, plain = eight_bit(1), Plain(folders["llava"])
    question = "Please show {prompt}? yes or no"
    reward = vqa(str(folders["llava"]), device="cpu", question=question, normalise=False)
    text = "Please show {a} circle? yes or no"
    expected = plain.next(images[0], text)[list(t[0] for t in reward.yes)].sum()
    assert math.isclose(reward(images, "{a} circle").item(), expected.item(), rel_tol=1e-4)
    loud = vqa(str(folders["llava"]), device="cpu", template={"shout": True})
    assert loud(images, "a") != vqa(str(folders["llava"]), device="cpu")(images, "a")


def test_declared_as_it_is(reward, kind, folders):
    assert reward.needs_prompt and reward.range == (0.0, 1.0)
    assert reward.name == f"vqa:{folders[kind]}"
    assert reward.differentiable == (kind in QWEN)
    assert reward(eight_bit(2).requires_grad_(), "a").requires_grad == reward.differentiable


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_half_precision(folders, dtype, close):
    half = vqa(str(folders["qwen2_vl"]), device="cpu", dtype=dtype)
    assert half.answerer.model.dtype == dtype
    images = eight_bit(4)
    got, expected = (
        half(images, PROMPTS),
        vqa(str(folders["qwen2_vl"]), device="cpu")(images, PROMPTS),
    )
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected, rtol=close)


def test_by_name_with_a_local_copy(folders, reward, kind):
    found = steer.reward("vqa:some/model", checkpoint=folders[kind], device="cpu")
    assert found.name == "vqa:some/model"
    assert torch.equal(found(eight_bit(2), "a"), reward(eight_bit(2), "a"))
    assert "vqa:*" in steer.rewards.available_rewards()


def test_models_are_loaded_once_and_again_when_rewritten(folders, tmp_path):
    folder = vlm_models.save("blip2", tmp_path / "model")
    first = vqa(str(folder), device="cpu")
    assert vqa(str(folder), device="cpu").answerer is first.answerer
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config, indent=7))
    assert vqa(str(folder), device="cpu").answerer is not first.answerer


def test_models_without_logits_to_keep_are_read_whole(folders):
    reward = vqa(str(folders["llava"]), device="cpu")
    images, kept = eight_bit(4), reward.answerer._keeps
    expected = reward(images, PROMPTS)
    reward.answerer._keeps = False
    try:
        got = reward(images, PROMPTS)
    finally:
        reward.answerer._keeps = kept
    assert kept and torch.allclose(got, expected, rtol=1e-4)


def test_models_that_cannot_be_read_are_refused(folders, monkeypatch):
    answerer = vqa(str(folders["llava"]), device="cpu").answerer
    monkeypatch.setattr(answerer, "_keeps", False)
    forward = answerer.model.forward
    monkeypatch.setattr(answerer.model, "forward", lambda **x: _short(forward(**x)))
    with pytest.raises(RewardError, match=r"logits for 5 positions of \d+ tokens"):
        vqa(str(folders["llava"]), device="cpu")(eight_bit(1), "a")


def _short(output):
    output.logits = output.logits[:, :5]
    return output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "Is it good?"}, r"question='Is it good\?' lacks \{prompt\}"),
        ({"yes": ["Sure"]}, "answer 'Sure' is not in the model's vocabulary"),
        ({"yes": "Yes"}, "yes='Yes': pass a list"),
        ({"yes": []}, r"yes=\[\]: pass a list"),
        ({"yes": ["No"]}, "have the same tokens"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_bad_options(folders, options, message):
    with pytest.raises(ValueError, match=message):
        vqa(str(folders["llava"]), device="cpu", **options)


def test_models_that_are_not_there_say_what_to_download():
    with pytest.raises(CheckpointError, match="`hf download nobody/nothing-vl`"):
        steer.reward("vqa:nobody/nothing-vl", device="cpu")
    with pytest.raises(CheckpointError, match="hf download nobody/nothing-vl --revision abc`"):
        steer.reward("vqa:nobody/nothing-vl", device="cpu", revision="abc")
    with pytest.raises(ValueError, match="lacks its model"):
        steer.reward("vqa:")


def test_a_folder_without_all_weights_is_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = vlm_models.save("llava", tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "layers.1" in name and name.endswith("weight"))
    kept = {name: value for name, value in weights.items() if name != dropped}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        vqa(str(folder), device="cpu")
