"""A reward of your own: any function of images and prompts. This one likes warm colours."""

from torch import Tensor

import steer


@steer.register_reward("warmth", differentiable=True, range=(-1.0, 1.0), needs_prompt=False)
def warmth(images: Tensor, prompts: list[str]) -> Tensor:
    """Red minus blue, of float images in [0, 1], (B, 3, H, W); (B,)."""
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


pipe = steer.shapes.pipeline()
guided = steer.guided(pipe, reward={"shapes": 1.0, "warmth": 0.1})
out = guided("a green circle", compute=4, num_inference_steps=20)
out.images[0].save("own_reward.png")
print(out.rewards)
