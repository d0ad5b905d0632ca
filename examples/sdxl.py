"""SDXL in bfloat16, with a tiny autoencoder for previews."""

import torch
from diffusers import StableDiffusionXLPipeline

import steer


pipe = StableDiffusionXLPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.bfloat16
).to("cuda")
guided = steer.guided(pipe, reward="hpsv2", preview="linear")  # or "tiny", downloaded once
out = guided("an astronaut riding a green horse", compute=4, num_inference_steps=30)
out.images[0].save("sdxl.png")
print(out.report)
