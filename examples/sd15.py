"""Stable Diffusion 1.5: four plain calls' compute, the best of what it buys."""

import torch
from diffusers import StableDiffusionPipeline

import steer


pipe = StableDiffusionPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5", torch_dtype=torch.float16
).to("cuda")
guided = steer.guided(pipe, reward="hpsv2")
out = guided(
    "a red circle left of a blue square", compute=4, generator=torch.Generator().manual_seed(0)
)
out.images[0].save("sd15.png")
print(out.rewards, out.report.base_reward)
