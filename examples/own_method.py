"""A search of your own: it drops the worse half of its particles half-way."""

from dataclasses import dataclass

import steer


@dataclass(frozen=True)
class KeepHalf(steer.methods.Method):
    """Of `n` particles, the better half by their previews after half of the steps."""

    n: int = 8

    @property
    def populations(self):
        """Population sizes per returned image, the first one first."""
        return (self.n, self.n // 2)

    def cost(self, steps):
        """Denoiser rows per returned image, at most."""
        return self.n * (steps // 2) + self.n // 2 * (steps - steps // 2)

    def __call__(self, ctx, start):
        """The pipeline's own loop evaluates the denoiser at what this generator yields."""
        solver, now = ctx.solver(start), start
        for step in ctx.steps:
            output = yield from ctx.denoise(now, step)
            if step.index == len(ctx.steps) // 2 - 1:
                scores = ctx.evaluate(now.at(step.x0(now.x, output)), step)
                best = sorted(ctx.top(now, scores, self.n // 2 * ctx.images))
                now, output = now.take(best), output[best]
                solver.gather(best)
            now = now.at(solver.step(step, now.x, output, now.ids))
        return ctx.winners(now)


pipe = steer.shapes.pipeline()
guided = steer.guided(pipe, reward="shapes", method=KeepHalf(8))
out = guided("a small purple triangle", num_inference_steps=20)
out.images[0].save("own_method.png")
print(out.report)
