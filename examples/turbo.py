"""A one-step model: the best of eight noises, then a climb from it by the reward's gradient."""

import torch
from diffusers import StableDiffusionXLPipeline

import steer
from steer.methods import NoiseOptimization


pipe = StableDiffusionXLPipeline.from_pretrained(
    "stabilityai/sdxl-turbo", torch_dtype=torch.bfloat16
).to("cuda")
climb = NoiseOptimization(iterations=8, through=None)
guided = steer.guided(pipe, reward="hpsv2", method=steer.Then(steer.BestOfN(8), climb))
out = guided("a cat in a spacesuit", num_inference_steps=1, guidance_scale=0.0)
out.images[0].save("turbo.png")
print(out.rewards, out.report.base_reward)
