"""Guidance in the loss: gradients in closed form, both arguments guided, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from families import build, seeded
from tiny_sets import rows, tiny_config as config, write_set
from torch import Tensor, nn

from steer.tune import TuneError, tune
from steer.tune.losses import Branch, Guidance
from steer.tune.noising import nest, predict
from steer.tune.objectives import squared_error
from steer.tune.trainer import Trainer


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


class Linear(nn.Module):
    """a x + b h: a denoiser whose guided prediction is a x + b (e + s (h - e))."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))

    def forward(self, x: Tensor, timestep: Tensor, h: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.a * x + self.b * h,)


@pytest.mark.parametrize("branch", ["both", "conditional"])
def test_gradients_of_the_guided_error_are_those_of_a_linear_denoiser(branch: Branch) -> None:
    draw = seeded(0)
    x, h, target = (torch.randn(3, 2, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    e = torch.randn(1, 2, 4, generator=draw, dtype=torch.float64)
    s, model = 3.5, Linear()
    found = Guidance(s, branch, {"h": e}).predict(
        lambda model, noisy, at, text: predict(model, noisy, at, nest(text)),
        *(model, x, torch.zeros(3), {"h": h}),
    )
    u, c = model.a * x + model.b * e, model.a * x + model.b * h
    torch.testing.assert_close(found, u + s * (c - u), rtol=1e-12, atol=1e-12)
    squared_error(found, target).sum().backward()
    residual = 2 * (found - target).detach() / 8  # of the mean over 2 x 4 entries
    to_a, to_b = (s * x, s * h) if branch == "conditional" else (x, e + s * (h - e))
    assert float(model.a.grad) == pytest.approx(float((residual * to_a).sum()), rel=1e-12)  # type: ignore[arg-type]
    assert float(model.b.grad) == pytest.approx(float((residual * to_b).sum()), rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.sample
@pytest.mark.parametrize("branch", ["both", "conditional"])
@pytest.mark.parametrize("objective", ["dpo", "tgo", "kto", "sft"])
def test_every_objective_is_of_guided_predictions_of_policy_and_reference(
    objective: str, branch: str, tmp_path: Path
) -> None:
    given = {"guidance_scale": 4.0, "guided_branch": branch, "objective": objective}
    job = config(tmp_path / "run", write_set(tmp_path / "data"), **given)
    trainer = Trainer(job, build("sd"))
    batch = trainer.loader.at(0)
    errors = trainer.losses.errors(batch)
    noisy = trainer.noising.add_noise(
        batch.x0.flatten(0, 1),
        batch.draws.noise.repeat(len(batch.x0), 1, 1, 1),
        batch.draws.index.repeat(len(batch.x0)),
    )
    at = batch.draws.index.repeat(len(batch.x0))
    text = batch.text["encoder_hidden_states"].float().repeat(len(batch.x0), 1, 1)
    empty = trainer.data.uncond["encoder_hidden_states"].float().expand_as(text)
    plain = build("sd").unet
    with torch.no_grad():
        c, u = (
            predict(plain, noisy, trainer.noising.timesteps[at], nest({"encoder_hidden_states": x}))
            for x in (text, empty)
        )
    noise = batch.draws.noise.repeat(len(batch.x0), 1, 1, 1)
    expected = squared_error(u + 4 * (c - u), noise)
    torch.testing.assert_close(errors.policy.detach(), expected, rtol=1e-3, atol=1e-4)
    if errors.reference is not None:
        assert torch.equal(errors.reference, errors.policy)
    trainer.loader.close()
    tune(job, build("sd"))
    log = rows(tmp_path / "run")
    assert log[0]["grad_norm"] > 0 and math.isfinite(log[-1]["loss"])


def test_half_precision_leaves_the_conditional_branch_its_gradients(tmp_path: Path) -> None:
    """Autocast keeps casts of weights, also those made without gradients."""
    job = config(
        tmp_path / "run",
        write_set(tmp_path / "data", pairs=None),
        objective="tgo",
        lora=False,
        dtype="bfloat16",
        guidance_scale=4.0,
        guided_branch="conditional",
        steps=1,
    )
    trainer = Trainer(job, build("sd"))
    trainer.losses(trainer.loader.at(0)).loss.sum().backward()
    weights = [p for n, p in trainer.policy.parameters().items() if n.endswith("to_q.weight")]
    assert weights and all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in weights)
    trainer.loader.close()


def test_models_with_guidance_as_an_input_and_sets_without_the_empty_prompt_are_refused(
    tmp_path: Path,
) -> None:
    data = write_set(tmp_path / "flux", "flux", guidance=3.5)
    pipe: Any = build("flux")
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(TuneError, match=r"guidance_scale=4: FluxT.*as an input .*3\.5\).*leave"):
        Trainer(config(tmp_path / "run", data, guidance_scale=4.0), pipe)
    data = write_set(tmp_path / "data")
    (data / "text-uncond.safetensors").unlink()
    with pytest.raises(TuneError, match=r"guidance_scale=4: .*was made without guidance"):
        Trainer(config(tmp_path / "run", data, guidance_scale=4.0), build("sd"))
