"""How good an image is for its prompt: `steer.reward("hpsv2")(images, prompts) -> (B,)`."""

from __future__ import annotations

from steer.rewards.registry import available_rewards, register_reward, resolve, reward


__all__ = ["available_rewards", "register_reward", "resolve", "reward"]
