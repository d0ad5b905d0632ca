"""Questions of prompts: what simple ones ask, what others are refused with, and a user's own."""

from __future__ import annotations

import json

import pytest

from steer.core.errors import CheckpointError
from steer.rewards.vlm.questions import Question, accepted, as_questions, questions_of


YES = ("yes",)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "Three red apples to the left of a bowl.",
            [
                ("Are there any apples in the image?", YES),
                ("How many apples are in the image?", ("three",)),
                ("Are the apples red?", YES),
                ("Is there a bowl in the image?", YES),
                ("Are the apples left of the bowl?", YES),
            ],
        ),
        (
            "a photo of two cats, 4 mice and an owl",
            [
                ("Are there any cats in the image?", YES),
                ("How many cats are in the image?", ("two",)),
                ("Are there any mice in the image?", YES),
                ("How many mice are in the image?", ("four",)),
                ("Is there an owl in the image?", YES),
            ],
        ),
        (
            "a red circle above a blue circle",  # one name twice: told apart by colour
            [
                ("Is there a red circle in the image?", YES),
                ("Is there a blue circle in the image?", YES),
                ("Is the red circle above the blue circle?", YES),
            ],
        ),
        ("the bus", [("Is there a bus in the image?", YES)]),
    ],
)
def test_simple_prompts(prompt, expected):
    assert [(q.text, q.answers) for q in questions_of(prompt)] == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat with a hat",
        "a red and white ball",
        "",
        "seven",
        "an old man reading the newspaper now",
    ],
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match=r"has no questions.*pass questions="):
        questions_of(prompt)


def test_numbers_are_right_as_words_and_as_digits():
    assert accepted(["four"]) == [["four", " four", "Four", " Four"], ["4", " 4"]]
    assert {tuple(ways) for ways in accepted(["4"])} == {tuple(w) for w in accepted(["four"])}
    assert accepted(["Yes"]) == [["yes", " yes", "Yes", " Yes"]]


def test_a_users_questions(tmp_path):
    own = {"a pond": [["How many ducks?", "two"], ["Sunny?", ["yes", "sunny"]]]}
    expected = {
        "a pond": [Question("How many ducks?", ("two",)), Question("Sunny?", ("yes", "sunny"))]
    }
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(own))
    assert as_questions(own) == as_questions(file) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"p": []}, "questions of 'p' are"),
        ({"p": "Is it?"}, "questions of 'p' are"),
        ({"p": [["Is it?"]]}, r"write \[question, answer\]"),
        ({"p": [["Is it?", []]]}, r"write \[question, answer\]"),
        (7, "questions=7: pass"),
    ],
)
def test_bad_questions(given, message):
    with pytest.raises(ValueError, match=message):
        as_questions(given)


def test_bad_files(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no object"):
        as_questions(tmp_path / "list.json")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        as_questions(str(tmp_path / "none.json"))
