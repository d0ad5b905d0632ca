"""A ControlNet pipeline is called as ever; the search never sees the difference."""

from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image, ImageDraw

import steer


edges = Image.new("RGB", (512, 512))
ImageDraw.Draw(edges).ellipse((96, 96, 416, 416), outline="white", width=4)

controlnet = ControlNetModel.from_pretrained("lllyasviel/sd-controlnet-canny")
pipe = StableDiffusionControlNetPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5", controlnet=controlnet
)
guided = steer.guided(pipe, reward="hpsv2")
out = guided("a red balloon", image=edges, compute=3, num_inference_steps=20)
out.images[0].save("controlnet.png")
