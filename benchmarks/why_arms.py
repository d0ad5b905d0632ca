"""The arms of why_tuning.py: configurations of `steer tune run` that differ in one thing each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steer.tune import TuneConfig


RUNS = Path("runs/why")
REWARD = "shapes"
PROMPTS = {"shapes": "train", "count": 4000, "seed": 5}
LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut"),
    *("time_emb_proj", "proj_in", "proj_out", "net.0.proj", "net.2"),
]

Trained = Literal["denoiser", "text_encoder"]
Place = tuple[int, float]
"""Steps and guidance scale of a plain call."""
FEW: tuple[Place, ...] = ((4, 1.0), (8, 1.0))
PLAIN: tuple[Place, ...] = ((20, 1.0),)
GUIDED: tuple[Place, ...] = ((20, 3.5),)


@dataclass(frozen=True)
class Arm:
    """A run of `steer tune`.

    Attributes:
        name: In tables; there `signal`, `samples` and `run` say what may matter.
        config: Of `steer tune run`, but for `out`.
        places: The plain calls by which it is judged.
        data: Of `steer tune data`, for what learns from stored samples.
        shared: The name of those samples, where several arms learn from them.
        real: Whether it learns from renders, too (`why_real.py`).
        trained: Parts of the pipeline; with the text encoder it is `why_text.py` that trains.
    """

    name: str
    signal: str
    samples: str
    run: str
    config: dict[str, Any]
    places: tuple[Place, ...] = FEW
    data: dict[str, Any] = field(default_factory=dict)
    shared: str = ""
    real: bool = False
    trained: tuple[Trained, ...] = ("denoiser",)

    @property
    def pipeline(self) -> str:
        """As configurations name it."""
        return self.config["pipeline"]

    def folder(self, key: str) -> Path:
        """Of its stored samples, or of renders."""
        return RUNS / ("real" if self.real else self.shared or key) / "data"

    def settings(self, key: str) -> TuneConfig:
        """The configuration, which would not end on its own within the seconds."""
        stored = {"data": str(self.folder(key))} if self.data or self.real else {}
        endless = {} if "rounds" in self.config else {"steps": 100_000}
        given = {**_COMMON, **endless, **stored, **self.config, "out": str(RUNS / key)}
        return TuneConfig.from_dict(given)


_COMMON: dict[str, Any] = {
    "batch": 32,
    "lr": 3e-5,
    "betas": [0.9, 0.99],
    "weight_decay": 0.0,
    "lora": False,
    "checkpoint_every": 4,
    "cpu": True,
}


def turbo(objective: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Of the few-step model, in the runs of four steps that it is called with."""
    sampling = {"prompts": PROMPTS, "reward": REWARD, "steps": 4, "preset": "renoise"}
    sampling |= others.pop("sampling", {})
    given = {"pipeline": "shapes-turbo", "accumulate": 2, "objective": objective}
    return {**given, "sampling": sampling, **others}


def _base(last: int, steps: int = 20, **others: Any) -> dict[str, Any]:
    """The gradient through the last steps of the base's run."""
    sampling = {"prompts": PROMPTS, "reward": REWARD, "steps": steps}
    objective = {"name": "draft", "last": last}
    given = {"pipeline": "shapes", "accumulate": 2, "objective": objective}
    return {**given, "sampling": sampling, **others}


ROUNDS = {
    "count": 10_000,
    "prompts": PROMPTS,
    "prompts_per_round": 32,
    "images": 8,
    "steps": 4,
    "reward": REWARD,
    "batch": 32,
}
DPO = {"pipeline": "shapes-turbo", "objective": {"name": "dpo", "beta": 300}, "batch": 16}
DPO_DATA = {
    "pipeline": "shapes-turbo",
    "prompts": {**PROMPTS, "count": 160},
    "seeds": 8,
    "steps": 4,
    "guidance_scale": 1.0,
    "rewards": [REWARD],
    "batch": 32,
    "test_share": 0.0,
    "pairs": {"per_prompt": 4, "choose": "widest"},
}

ARMS: dict[str, Arm] = {
    "turbo-draft": Arm(
        "`draft`, whole run",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}),
    ),
    "turbo-draft-13": Arm(
        "`draft`, whole run, as many updates as the guided base",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, steps=13),
    ),
    "turbo-draft-1": Arm(
        "`draft`, last step",
        "gradient",
        "fresh",
        "1 of 4 steps",
        turbo({"name": "draft", "last": 1}),
    ),
    "base-draft": Arm(
        "`draft`, base without guidance",
        "gradient",
        "fresh",
        "4 of 20 steps",
        _base(4),
        PLAIN + GUIDED,
    ),
    "base-draft-guided": Arm(
        "`draft`, base with guidance",
        "gradient",
        "fresh",
        "4 of 20 steps",
        _base(4, guidance_scale=3.5),
        PLAIN + GUIDED,
    ),
    "turbo-ddpo": Arm(
        "`ddpo`",
        "score",
        "fresh",
        "3 of 4 steps",
        turbo({"name": "ddpo"}, batch=64, sampling={"images": 8, "updates": 2}),
    ),
    "turbo-nft": Arm(
        "`nft` in rounds",
        "score",
        "by round",
        "one level",
        {
            "pipeline": "shapes-turbo",
            "objective": {"name": "nft", "beta": 1.0, "advantage": "best_of_n", "n": 4},
            "noise_range": [0.2, 1.0],
            "rounds": {**ROUNDS, "updates": 4},
            "batch": 64,
            "siblings": 8,
            "accumulate": 2,
        },
    ),
    "turbo-dpo": Arm(
        "`dpo`",
        "preference",
        "stored",
        "one level",
        {**DPO, "checkpoint_every": 20},
        data=DPO_DATA,
    ),
    "turbo-dpo-rounds": Arm(
        "`dpo` in rounds",
        "preference",
        "by round",
        "one level",
        {
            **DPO,
            "rounds": {**ROUNDS, "updates": 8, "pairs": {"per_prompt": 4}, "reference": "round"},
            "checkpoint_every": 8,
        },
    ),
    "turbo-direct-align": Arm(
        "`direct_align`", "gradient", "fresh", "one level", turbo({"name": "direct_align"})
    ),
    "turbo-draft-lora": Arm(
        "`draft`, adapters of rank 16",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, lora={"rank": 16, "targets": LAYERS}, lr=3e-4),
    ),
    "turbo-draft-lora-4": Arm(
        "`draft`, adapters of rank 4",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, lora={"rank": 4, "targets": LAYERS}, lr=3e-4),
    ),
    "turbo-draft-lora-attention": Arm(
        "`draft`, adapters of rank 16 on attention alone",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, lora={"rank": 16}, lr=3e-4),
    ),
    "turbo-draft-text": Arm(
        "`draft`, text encoder trained, too",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}),
        trained=("denoiser", "text_encoder"),
    ),
    "turbo-draft-text-alone": Arm(
        "`draft`, text encoder alone",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}),
        trained=("text_encoder",),
    ),
    "base-draft-whole": Arm(
        "`draft`, base with guidance, whole run",
        "gradient",
        "fresh",
        "all 20 steps",
        _base(20, guidance_scale=3.5),
        GUIDED,
    ),
    "turbo-draft-half": Arm(
        "`draft`, half the batch",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, batch=16, accumulate=1),
    ),
    "turbo-draft-fast": Arm(
        "`draft`, 3 x the learning rate",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, lr=1e-4),
    ),
    "turbo-draft-slow": Arm(
        "`draft`, learning rate / 3",
        "gradient",
        "fresh",
        "all 4 steps",
        turbo({"name": "draft", "last": 4}, lr=1e-5),
    ),
}
"""In the order in which they are trained."""
BEFORE = {
    "shapes-turbo": Arm("untuned", "", "", "", {"pipeline": "shapes-turbo"}),
    "shapes": Arm("untuned base", "", "", "", {"pipeline": "shapes"}, PLAIN + GUIDED),
}
