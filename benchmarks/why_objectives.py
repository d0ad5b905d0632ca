"""Further arms of why_tuning.py: every other objective of the trainer on the few-step model.

Those of stored samples learn from one set, and its drawing counts in each. Scales are dpo's there:
a factor of 150 on the difference of errors, and a span as wide as the reward's scores.
"""

from __future__ import annotations

from typing import Any

from why_arms import DPO, DPO_DATA, REWARD, ROUNDS, Arm, turbo


_STORED: dict[str, Any] = {**DPO, "checkpoint_every": 20}
_SINGLE = {**_STORED, "batch": 32}
_PAIRS: dict[str, dict[str, Any]] = {
    "poly_dpo": {"beta": 300, "alpha": 8.0},
    "dmpo": {"beta": 300},
    "rdpo": {"beta": 300},
    "cdpo": {"beta": 300},
    "soft_dpo": {"beta": 300, "span": 0.7},
    "dpop": {"beta": 300},
    "ipo": {"beta": 300},
    "smpo": {"beta": 300, "span": 0.7},
    "mapo": {},
}
_SCORES: dict[str, dict[str, Any]] = {
    "tgo": {"temperature": 1 / 150, "per_prompt": True, "units": "spread"},
    "kto": {"beta": 150, "per_prompt": True},
    "sft": {"quantile": 0.75, "per_prompt": True},
    "csft": {"per_prompt": True},
    "orw": {},
}
_GRADIENTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "alignprop": ("1 to 4 of 4 steps", {"name": "alignprop"}, {}),
    "drtune": ("2 of 4 steps", {"name": "drtune"}, {}),
    "refl": ("1 of 4 steps", {"name": "refl", "window": [0.25, 1.0]}, {}),
    "draft-fresh": ("the last step, twice", {"name": "draft", "last": 1, "noisings": 2}, {}),
}
_NAMES = {"draft-fresh": "`draft`, last step, `noisings: 2`"}


def _stored(name: str, signal: str, config: dict[str, Any]) -> Arm:
    return Arm(f"`{name}`", signal, "stored", "one level", config, data=DPO_DATA, shared="stored")


OBJECTIVES: dict[str, Arm] = {
    **{
        f"turbo-{key}": Arm(
            _NAMES.get(key, f"`{key}`"), "gradient", "fresh", run, turbo(goal, **more)
        )
        for key, (run, goal, more) in _GRADIENTS.items()
    },
    "turbo-image-refl": Arm(
        "`image_refl`, `real: 0.01`",
        "gradient",
        "real images",
        "one level",
        {
            "pipeline": "shapes-turbo",
            "accumulate": 2,
            "objective": {"name": "image_refl", "window": [0.25, 1.0]},
            "sampling": {"reward": REWARD, "steps": 4},
        },
        real=True,
    ),
    "turbo-draft-real": Arm(
        "`draft`, last step, `real: 0.1`",
        "gradient",
        "fresh, and real images",
        "1 of 4 steps",
        turbo({"name": "draft", "last": 1, "real": 0.1}),
        real=True,
    ),
    "turbo-flow-grpo": Arm(
        "`flow_grpo`",
        "score",
        "fresh",
        "3 of 4 steps",
        turbo({"name": "flow_grpo"}, batch=64, sampling={"images": 8, "updates": 2}),
    ),
    "turbo-awm": Arm(
        "`awm` in rounds",
        "score",
        "by round",
        "one level",
        {
            "pipeline": "shapes-turbo",
            "objective": {"name": "awm", "advantage": "best_of_n", "n": 4},
            "noise_range": [0.2, 1.0],
            "rounds": {**ROUNDS, "updates": 4},
            "batch": 64,
            "siblings": 8,
            "accumulate": 2,
        },
    ),
    **{
        f"turbo-{name.replace('_', '-')}": _stored(
            name, "preference", {**_STORED, "objective": {"name": name, **given}}
        )
        for name, given in _PAIRS.items()
    },
    **{
        f"turbo-{name}": _stored(name, "score", {**_SINGLE, "objective": {"name": name, **given}})
        for name, given in _SCORES.items()
    },
}
"""In the order in which they are trained."""
