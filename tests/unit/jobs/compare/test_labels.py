"""Labels of a plot with many arms at one place find their heights, and the search for them ends."""

from __future__ import annotations

from steer.jobs.compare.plot import Point, quality


def test_many_arms_at_one_place_are_labelled() -> None:
    points = [
        Point(
            label=f"arm {k}",
            x=2.0,
            mean=0.78 + 0.0007 * k,
            low=0.76,
            high=0.80 + 0.0001 * k,
            colour=k,
        )
        for k in range(40)
    ]
    assert quality(points, "reward").count("arm 39") >= 1
