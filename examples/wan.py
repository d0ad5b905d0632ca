"""A video of Wan: the best of four, by the reward of its frames."""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import steer


pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", torch_dtype=torch.bfloat16)
pipe.to("cuda")
reward = steer.rewards.PerFrame(steer.reward("hpsv2"), every=8)
guided = steer.guided(pipe, reward=reward, method=steer.BestOfN(4))
out = guided("a red ball rolls down a hill", num_frames=33, num_inference_steps=20)
export_to_video(out.frames[0], "wan.mp4", fps=16)
print(out.rewards)
