"""The order of a loop's axes, found by the values of what was drawn."""

from __future__ import annotations

import torch
from families import seeded

from steer.driver.axes import in_loop_order


def test_an_order_is_found_where_shapes_do_not_tell() -> None:
    plain, more = torch.randn(2, 2, 4, 4, 8, 8, generator=seeded(0)).unbind()
    lane = plain.permute(0, 2, 1, 3, 4).bfloat16()
    for drew in (plain, (plain, "more")):
        assert torch.equal(in_loop_order(more, drew, lane), more.permute(0, 2, 1, 3, 4))


def test_some_given_frames_are_no_hindrance() -> None:
    plain, more = torch.randn(2, 1, 4, 4, 8, 8, generator=seeded(0)).unbind()
    lane = plain.permute(0, 2, 1, 3, 4).clone()
    lane[:, :1] = 0
    assert torch.equal(in_loop_order(more, plain, lane), more.permute(0, 2, 1, 3, 4))


def test_what_is_not_found_stays() -> None:
    plain, more, other = torch.randn(3, 1, 4, 8, 8, generator=seeded(0)).unbind()
    for drew, lane in (
        (plain, plain),
        (plain, other),
        (None, plain),
        (plain, plain.flatten(2)),
        (plain, torch.randn(1, 8, 8, 5)),
    ):
        assert in_loop_order(more, drew, lane).shape == more.shape
        assert torch.equal(in_loop_order(more, drew, lane), more)
