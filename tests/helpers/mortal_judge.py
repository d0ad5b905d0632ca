"""A chat server in a process of its own that is killed at its n-th request: `mortal_judge.py n`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import uvicorn
from chat_servers import Faulty, brightness, question_of, sure


def main() -> None:
    port, life = map(int, sys.argv[1:])
    faulty, listening = Faulty(), socket.create_server(("127.0.0.1", port))

    def kill() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    faulty.always = lambda body: sure(brightness(body) * len(question_of(body)) / 200)
    if life:
        faulty.faults = [*[None] * (life - 1), kill]
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(faulty.app, log_level="critical")).run(sockets=[listening])


if __name__ == "__main__":
    main()
