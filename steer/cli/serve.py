"""`steer serve`: a reward in a process of its own, for samplers in others."""

from __future__ import annotations

from typing import Annotated

import typer

from steer.cli.exits import bad_input
from steer.cli.terminal import escape, say


Reward = Annotated[str, typer.Argument(help="As for `steer sample --reward`.")]
Host = Annotated[str, typer.Option(help="Where to listen; others than this machine need a token.")]
Port = Annotated[int, typer.Option(help="0 is a free one.")]
TokenEnv = Annotated[
    str | None,
    typer.Option(
        help="Environment variable that holds the clients' token. Default: STEER_TOKEN.",
        show_default=False,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="Pixels of one request. Default: 32 images of 1024 x 1024.", show_default=False
    ),
]
MaxBatch = Annotated[
    int | None, typer.Option(help="Images of one request. Default: 32.", show_default=False)
]
Checkpoint = Annotated[
    list[str] | None,
    typer.Option(help="Local weights, as REWARD=PATH; may be repeated.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16; auto is the reward's own.")]


def serve(
    reward: Reward,
    host: Host = "127.0.0.1",
    port: Port = 8420,
    token_env: TokenEnv = None,
    max_pixels: MaxPixels = None,
    max_batch: MaxBatch = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Serve a reward to samplers in other processes, which name it by its address.

    Example: steer serve hpsv2, and elsewhere: steer sample "a red fox" --reward
    http://127.0.0.1:8420
    """
    with bad_input():
        from steer.jobs.reward_loader import RewardLoader, reward_parts
        from steer.jobs.score_job import read_checkpoints
        from steer.jobs.serving.process import serve as serve_reward

        loader = RewardLoader(
            device, dtype, read_checkpoints(checkpoint or (), reward_parts(reward))
        )
        say(f"[dim]Loading {escape(reward)}[/]")
        serve_reward(
            reward,
            loader,
            host=host,
            port=port,
            token_env=token_env,
            max_pixels=max_pixels,
            max_batch=max_batch,
            tell=lambda url: say(
                f"serving {escape(reward)} on [bold]{escape(url)}[/], until Ctrl-C"
            ),
        )
