"""The argument that tells a flow map where to go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flow_law import flow_grid
from flow_maps import MapToy
from toy import Mixture, Toy

from steer.driver.facts import jump_argument
from steer.driver.jumps import jump_of, jumping


def test_where_a_step_leads() -> None:
    steps = flow_grid(4)
    assert jump_of(steps[1], steps) is None
    assert jump_of(replace(steps[1], alpha_next=1.0, sigma_next=0.0), steps) == 0
    half = replace(steps[1], alpha_next=0.7, sigma_next=0.3)
    assert jump_of(half, steps) == pytest.approx(300)
    assert jump_of(replace(steps[3], sigma_next=0.0), steps) is None


def test_the_denoiser_goes_there_and_is_put_back() -> None:
    pipe, where = MapToy(), [None, 250.0, 0.0, None]
    x, t, r = torch.zeros(3, 1), torch.full((3,), 500.0), torch.full((3,), 400.0)
    queue = list(where)
    with jumping(pipe, lambda: queue.pop(0)):
        pipe.transformer(x, t, r)
        pipe.transformer(x, t, r)
        pipe.transformer(hidden_states=x, timestep=t, r_timestep=r)
        pipe.transformer(x, timestep=t, r_timestep=r)
    pipe.transformer(x, t, r)
    assert [there for _, there in pipe.transformer.asked] == [0.4, 0.25, 0.0, 0.4, 0.4]
    assert float(r[0]) == 400


def test_other_denoisers_are_left_alone() -> None:
    pipe = Toy(Mixture([[0.0]], [1.0]), "flow")
    assert jump_argument(pipe) is None
    assert jump_argument(MapToy()) == "r_timestep"
    with jumping(pipe, lambda: 0.0):
        assert "forward" not in vars(pipe.denoiser)
