"""Stable Diffusion 3.5, a flow model: particles that are moved by fresh noise and resampled."""

import torch
from diffusers import StableDiffusion3Pipeline

import steer


pipe = StableDiffusion3Pipeline.from_pretrained(
    "stabilityai/stable-diffusion-3.5-medium", torch_dtype=torch.bfloat16
).to("cuda")
guided = steer.guided(pipe, reward="hpsv2", method=steer.SMC(4))
out = guided("a red cube on top of a blue cylinder", num_inference_steps=28)
out.images[0].save("sd35.png")
print(out.report)
