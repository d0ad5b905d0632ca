"""Optimise one reward, watch another: does the picture get better, or only the score?"""

import steer


def sharpness(images, prompts):
    """How much neighbouring pixels differ; nobody optimises it."""
    return images.diff(dim=-1).abs().mean((1, 2, 3))


pipe = steer.shapes.pipeline()
guided = steer.guided(pipe, reward="shapes", judge=sharpness)
for compute in (1, 2, 8):
    out = guided(
        "a large blue circle left of a red circle", compute=compute, num_inference_steps=20
    )
    print(compute, out.rewards, out.report.judges)
out.images[0].save("judge.png")
