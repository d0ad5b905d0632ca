"""How the committed results name a method's settings.

Results keep the words of the day on which they were measured: strides were a method `Draft`, guided
best-of-N was `GradientGuidance`, noise optimisation had all of its numbers side by side, and
nothing could be damped or leashed. The methods are the same, bit for bit, so results and runs of
today are told by one name.
"""

from __future__ import annotations

import re

from steer.methods import BestOfN, Guide, NoiseOptimization, Prune, Sphere, Then
from steer.search.method import Method


def recorded(method: Method) -> str:
    """The settings of a method as results have them: its repr, where that is still the same."""
    match method:
        case Prune(strides=None):
            return f"Prune(start={method.start}, keep={method.keep}, at={method.at})"
        case Prune():
            plan = f"start={method.start}, keep={method.keep}, at={method.at}"
            return f"Draft({plan}, through={method.strides})"
        case Guide(method=BestOfN(n)):
            return (
                f"GradientGuidance(n={n}, strength={method.strength}, when={method.when!r}, "
                f"through={method.through!r}, inner={method.inner}, recur=0, "
                f"schedule={method.schedule!r})"
            )
        case Guide() if method == Guide(method.method, method.strength, method.when):
            inner = recorded(method.method)
            return f"Guide(method={inner}, strength={method.strength}, when={method.when!r})"
        case NoiseOptimization(ascent=Sphere(block=None), gradient=str(), leash=None):
            return _noise_optimization(method)
        case Then():
            return f"Then(first={recorded(method.first)}, second={recorded(method.second)})"
    return re.sub(r", (damping=0\.0|leash=None|block=None|lookahead='x0')", "", repr(method))


def _noise_optimization(method: NoiseOptimization) -> str:
    ascent, usual = method.ascent, Sphere()
    step = None if ascent.step == usual.step else ascent.step
    momentum = None if ascent.momentum == usual.momentum else ascent.momentum
    assert isinstance(ascent, Sphere)
    return (
        f"NoiseOptimization(iterations={method.iterations}, through={method.through}, "
        f"variant='sphere', step={step}, momentum={momentum}, starts={method.starts}, "
        f"gradient={method.gradient!r}, directions=4, angle=5.0, finish={method.finish!r}, "
        f"keep_start={method.keep_start}, patience={method.patience}, "
        f"max_angle={ascent.max_angle}, monitor={method.monitor!r}, "
        f"checkpoint={method.checkpoint}, clip=0.1, weight=0.01)"
    )
