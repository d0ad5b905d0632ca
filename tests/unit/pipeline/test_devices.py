"""`guided(devices=...)`: the same bits as on one device, and what several devices do."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from families import arguments, build, redness, seeded, shared

import steer
from steer.core.errors import SteerError
from steer.driver.replicas import replica
from steer.methods import SMC, BestOfN, Gate, Guide, NoiseSearch, Prune
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


def call(pipe: Any, method: Any, devices: int, **more: Any) -> Any:
    given = {"lane_width": 2, "compute": None, **more}
    options = {name: given.pop(name) for name in ("lane_width", "compute")}
    family = given.pop("family", "sd")
    where = ["cpu"] * devices if devices else None
    return guided(pipe, redness, method=method, devices=where, **options)(
        **arguments(family, output_type="pt", **given)
    )


def check_equal(one: Any, several: Any) -> None:
    """Pictures, rewards, who was chosen, what was spent, and all that happened."""
    pictures = [out.frames if hasattr(out, "frames") else out.images for out in (one, several)]
    assert torch.equal(*map(torch.as_tensor, pictures))
    assert one.rewards == several.rewards and one.accepted == several.accepted
    reports = [one.report, several.report]
    assert reports[0].chosen == reports[1].chosen
    assert reports[0].trace.events == reports[1].trace.events
    ledgers = [report.ledger.to_dict() for report in reports]
    for ledger in ledgers:
        del ledger["seconds"], ledger["peak_bytes"]
    assert ledgers[0] == ledgers[1]
    assert reports[0].lane_width == reports[1].lane_width


METHODS = [
    BestOfN(5),
    BestOfN(6, strides=2),
    Prune(8, (3, 2), (0.25, 0.5)),
    Prune(7, (2,), (0.75,), strides=2),
    Gate(BestOfN(5), threshold=0.6),
    NoiseSearch(n=3, rounds=2),
    SMC(4, when=steer.every(1)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_several_devices_give_what_one_gives(method: Any) -> None:
    pipe = shared("sd", "euler_a")
    one = call(pipe, method, 0)
    check_equal(one, call(pipe, method, 2))


def test_gradients_through_the_denoisers_of_several_devices() -> None:
    pipe, reward = shared("sd", "euler_a"), FunctionReward(redness, differentiable=True)
    outs = [
        guided(
            pipe,
            reward,
            method=Guide(BestOfN(3), through="denoiser"),
            lane_width=1,
            devices=devices,
        )(**arguments("sd", output_type="pt"))
        for devices in (None, ["cpu", "cpu", "cpu"])
    ]
    assert torch.equal(outs[0].images, outs[1].images) and outs[0].rewards == outs[1].rewards
    rows = [out.report.ledger.backward_rows for out in outs]
    assert rows[0] == rows[1] > 0
    assert all(weight.grad is None for weight in pipe.unet.parameters())


def test_of_several_prompts_and_images() -> None:
    pipe, given = shared("sd", "euler_a"), {"prompt": ["a", "b"], "num_images_per_prompt": 2}
    expected = call(pipe, Prune(5, (2,), (0.5,)), 0, **given)
    check_equal(expected, call(pipe, Prune(5, (2,), (0.5,)), 3, **given))


@pytest.mark.parametrize("family", ["sdxl", "flux", "sana", "wan"])
def test_of_other_families(family: str) -> None:
    pipe = shared(family)
    one = call(pipe, BestOfN(3), 0, family=family, lane_width=1)
    check_equal(one, call(pipe, BestOfN(3), 2, family=family, lane_width=1))


def test_compute_plans_the_same() -> None:
    pipe = shared("sd", "euler_a")
    one, two = (call(pipe, None, devices, compute=4) for devices in (0, 2))
    assert one.report.method == two.report.method
    check_equal(one, two)


def test_the_bundled_world() -> None:
    pipe = steer.shapes.pipeline()
    outs = [
        guided(pipe, "shapes", method=BestOfN(2), lane_width=1, devices=devices)(
            "a red circle", num_inference_steps=2, generator=seeded(0), output_type="pt"
        )
        for devices in (None, ["cpu", "cpu"])
    ]
    check_equal(*outs)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The thread of every denoiser call, and how many rows it had."""
    seen: list[tuple[str, int]] = []
    forward = UNet2DConditionModel.forward

    def watched(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((threading.current_thread().name, len(sample)))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    return seen


def test_lanes_are_narrower_by_default_so_that_every_device_has_one(asked: list[Any]) -> None:
    pipe = build("sd")
    steered = guided(pipe, redness, method=BestOfN(8), devices=["cpu", "cpu"])
    out = steered(**arguments("sd"))
    assert out.report.lane_width == 4 and out.report.ledger.denoiser_calls == 2 * 4
    del asked[:]
    steered(**arguments("sd"))
    here = threading.main_thread().name
    assert [rows for name, rows in asked if name == here] == [8] * 4
    assert [rows for name, rows in asked if name != here] == [8] * 4


def test_no_more_devices_than_lanes(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy is made for a device that would have nothing to do."""
    out = call(build("sd"), BestOfN(1), 3, lane_width=None)
    assert {name for name, _ in asked} == {threading.main_thread().name}
    assert out.report.ledger.checked_rows == 0
    made: list[str] = []

    def counted(module: Any, device: torch.device, name: str) -> Any:
        made.append(name)
        return replica(module, device, name)

    monkeypatch.setattr("steer.driver.shares.replica", counted)
    call(build("sd"), BestOfN(4), 5)
    assert made == ["unet"]


def test_one_device_that_is_short_of_memory_halves_the_lanes_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("sd", "euler_a")
    expected = call(pipe, BestOfN(8), 2)
    forward = UNet2DConditionModel.forward

    def small(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 4 and threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("CUDA out of memory. GPU 1 has too little")
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", small)
    with pytest.warns(UserWarning, match="half as wide a lane"):
        out = call(pipe, BestOfN(8), 2, lane_width=4)
    assert torch.equal(out.images, expected.images) and out.rewards == expected.rewards
    assert out.report.lane_width == 2


def test_an_error_of_one_device_ends_the_call_and_the_pipeline_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("sd")
    scheduler, forward = pipe.scheduler, UNet2DConditionModel.forward

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("an illegal memory access was encountered")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", broken)
    with pytest.raises(SteerError, match=r"^devices: the copy of pipe.unet on cpu .*illegal"):
        call(pipe, BestOfN(4), 2)
    assert pipe.scheduler is scheduler and "forward" not in vars(pipe.unet)
    assert not any(thread.name.startswith("steer") for thread in threading.enumerate())


def test_weights_that_change_between_calls_are_the_copies_too() -> None:
    pipe = build("sd")
    steered = guided(pipe, redness, method=BestOfN(4), lane_width=2, devices=["cpu", "cpu"])
    steered(**arguments("sd"))
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.5)
    out = steered(**arguments("sd", output_type="pt"))
    check_equal(call(pipe, BestOfN(4), 0), out)


def test_a_batch_that_cannot_be_divided_runs_on_one_device() -> None:
    pipe = build("sd")
    steered = guided(pipe, redness, method=BestOfN(2), devices=["cpu", "cpu"])
    steered.widths._fixed.add(type(pipe))
    with pytest.warns(UserWarning, match=r"^devices: .* so that cpu alone is used"):
        out = steered(**arguments("sd", output_type="pt"))
    check_equal(call(pipe, BestOfN(2), 0, lane_width=1), out)


def test_what_is_refused() -> None:
    pipe = build("sd")
    with pytest.raises(ValueError, match="devices='cpu': must be a list"):
        guided(pipe, redness, devices="cpu")
    with pytest.raises(ValueError, match="the first is meta"):
        guided(pipe, redness, devices=["meta", "cpu"])(**arguments("sd"))
    tuned = guided(pipe, redness, tuned=build("sd").unet, devices=["cpu", "cpu"])
    with pytest.raises(ValueError, match="devices beside tuned or blend"):
        tuned(**arguments("sd"))
