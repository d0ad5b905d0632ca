"""UnifiedReward: what is parsed, what is refused, and that batches write as single images do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import vlm_models

from steer.core.errors import CheckpointError, RewardError
from steer.rewards.names import BUILT_IN
from steer.rewards.vlm import prompts
from steer.rewards.vlm.unifiedreward import scores_in, unifiedreward


GOOD = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 3\nStyle Score (1-5): 4.3"
PROMPTS = ["a red circle", "a blue square left of a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlm_models.save("qwen3_vl", tmp_path_factory.mktemp("vlm") / "qwen3_vl")


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def written(monkeypatch, folder, *texts, axis="mean", **options):
    reward = unifiedreward(axis, model=str(folder), device="cpu", **options)
    monkeypatch.setattr(reward.answerer, "write", lambda inputs, tokens: list(texts))
    return reward(images(len(texts)), PROMPTS[: len(texts)])


def test_scores_are_read(monkeypatch, folder):
    other = "**Alignment Score (1-5): 1.0**\nCoherence Score (1-5):2\nstyle score (1-5): 5.0."
    means = written(monkeypatch, folder, GOOD, other)
    assert torch.allclose(means, torch.tensor([(2.6947 + 3 + 4.3) / 3, 8 / 3]), atol=1e-4)
    one = written(monkeypatch, folder, GOOD, "Style Score (1-5): 1.5", axis="style")
    assert torch.allclose(one, torch.tensor([4.3, 1.5]))  # the axis alone is enough


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is a fine picture.",
        GOOD.replace("3", "nan"),
        GOOD.replace("2.69", "7.69"),
        GOOD.replace("2.69", "-2.69"),
        GOOD[:60],
        prompts.read("unifiedreward"),  # the form itself, not filled in
    ],
)
def test_texts_without_scores_are_never_silent(monkeypatch, folder, text):
    with pytest.raises(RewardError, match=r"the model wrote .* for the prompt 'a red circle'"):
        written(monkeypatch, folder, text)
    assert written(monkeypatch, folder, text, unread=1.0).tolist() == [1.0]


def test_the_last_of_several_scores_counts():
    assert scores_in(GOOD + "\nFinal: Style Score (1-5): 2")["style"] == 2.0


def test_a_batch_writes_what_single_images_write(folder):
    reward = unifiedreward(model=str(folder), device="cpu", tokens=4)
    pictures = images(2)
    expected = []
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        question = prompts.read("unifiedreward").replace("{prompt}", prompt)
        inputs = reward.answerer.inputs(picture[None], [question])
        ids = []
        for _ in range(4):
            start = inputs["input_ids"].shape[1] - len(ids)
            with torch.no_grad():
                ids.append(int(reward.answerer.model(**inputs).logits[0, -1].argmax()))
            if ids[-1] == reward.answerer.tokenizer.eos_token_id:
                break
            more = torch.tensor([[ids[-1]]])
            for name, new in (("input_ids", more), ("attention_mask", more * 0 + 1)):
                inputs[name] = torch.cat([inputs[name], new], 1)
            kinds = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([kinds, kinds[:, :1] * 0], 1)
            assert inputs["input_ids"].shape[1] == start + len(ids)
        expected.append(reward.answerer.tokenizer.decode(ids, skip_special_tokens=True))
    assert reward.write(pictures, PROMPTS) == expected


def test_names(folder):
    for axis in ("alignment", "coherence", "style"):
        made = unifiedreward(axis, model=str(folder), device="cpu")
        assert made.name == f"unifiedreward:{axis}" and made.name in BUILT_IN
        assert made.family == "vlm/human" and not made.differentiable and made.range == (1.0, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "taste"}, "axis='taste': one of 'mean', 'alignment'"),
        ({"unread": 0.0}, "unread=0.0: a score from 1 to 5, or None"),
        ({"unread": float("nan")}, "unread=nan"),
        ({"tokens": 0}, "tokens=0"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        unifiedreward(model=str(folder), device="cpu", **options)


def test_other_families_are_refused(tmp_path):
    folder = vlm_models.save("llava", tmp_path / "llava")
    with pytest.raises(CheckpointError, match="is not one of Qwen's"):
        unifiedreward(model=str(folder), device="cpu")
