"""Hostile files from small generators: images, prompts, settings, weights, records."""

from __future__ import annotations

import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign_books import FILES, SEED, Books
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save
from typer.testing import CliRunner

from steer.cli.app import app
from steer.core.errors import SteerError


EACH = -(-FILES // 5)
LIMIT = 60


class Code:
    """A pickle of this makes a file when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@contextmanager
def in_time(books: Books, what: str) -> Iterator[None]:
    """A hang is a fault, and ends."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    except TimeoutError:
        books.found("hangs", what)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(books: Books, what: str, *words: object) -> None:
    """The command ends with one sentence, or does its work."""
    with in_time(books, what):
        result = CliRunner().invoke(app, [str(word) for word in words])
        error = result.exception
        books.did("hostile inputs")
        if (
            error is not None and not isinstance(error, SystemExit)
        ) or "Traceback" in result.output:
            books.found("tracebacks", f"{what}: {error!r}: {result.output[-300:]}")
        elif result.exit_code not in (0, 1, 2):
            books.found("tracebacks", f"{what}: exit code {result.exit_code}")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, repeated or replaced."""
    found = bytearray(data)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randrange(1, 9)):
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        case 1:
            del found[rng.randrange(len(found)) :]
        case 2:
            at = rng.randrange(len(found))
            found[at:at] = rng.randbytes(rng.randrange(1, 99))
        case 3:
            found = bytearray(rng.randbytes(rng.randrange(0, 300)))
        case _:
            at = rng.randrange(len(found))
            found[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(found)


def test_images(tmp_path: Path, books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng, made = random.Random(f"{SEED} images"), 0
    kinds = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "EPS", "PPM")
    image = Image.effect_noise((24, 24), 60).convert("RGB")
    while made < EACH:
        folder = tmp_path / f"f{made}"
        folder.mkdir()
        for k in range(8):
            kind, path = (
                rng.choice(kinds),
                folder / f"{k}.{rng.choice(('png', 'jpg', 'webp', 'tif'))}",
            )
            chunk = PngInfo()
            chunk.add_itxt(
                "steer", rng.choice(["{", "[" * 50_000, '{"prompt": 3}', '{"prompt": "x"}'])
            )
            image.save(path, kind, **({"pnginfo": chunk} if kind == "PNG" else {}))
            path.write_bytes(damaged(path.read_bytes(), rng) if k else path.read_bytes())
        image.save(folder / "good.png")
        words = [
            "score",
            folder,
            "--reward",
            "compressibility",
            "--prompt",
            "x",
            "--csv",
            f"{made}.csv",
        ]
        command(books, f"images in f{made}, seed {SEED}", *words)
        if not Path(f"{made}.csv").exists():
            books.found("lost", f"images in f{made}: no table of the good one")
        books.did("hostile inputs", 7)
        made += 8
    books.check()


def test_prompt_files(tmp_path: Path, books: Books) -> None:
    rng = random.Random(f"{SEED} prompts")
    texts = {
        ".txt": "a red circle\n\ntwo\u2028blue squares\r\n",
        ".json": '["a red circle", {"prompt": "two"}, "x"]',
        ".jsonl": '{"prompt": "a"}\n"b"\n{"text": "c"}\n',
        ".csv": 'prompt,category\n"a, red",x\n"two\nlines",y\n',
        ".tsv": "prompt\tcategory\na red\tx\n",
    }
    deep = {".json": b"[" * 100_000, ".jsonl": b'{"a":' * 50_000}
    for k in range(EACH):
        suffix = rng.choice(list(texts))
        path = tmp_path / f"{k}{suffix}"
        data = damaged(texts[suffix].encode(), rng)
        path.write_bytes(deep.get(suffix, data) if k % 20 == 0 else data)
        settings = tmp_path / "c.yaml"
        settings.write_text(f"prompts: {path}\narms: [base, {{name: best, compute: 2}}]\n")
        if k % 2:
            command(books, f"prompts {k}", "compare", settings, "--check")
        else:
            out = tmp_path / "file"  # a file, so that nothing is drawn
            out.write_text("")
            command(books, f"prompts {k}", "sample", "--prompts-file", path, "--out", out)
    books.check()


def test_settings(tmp_path: Path, books: Books) -> None:
    rng = random.Random(f"{SEED} settings")
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    bombs = [
        "a: &a [x, x]\n" + "".join(f"b{k}: &b{k} [*a, *a]\n" for k in range(9)),
        "[" * 20_000,
        "!!python/object/apply:os.mkdir [ran]\n",
        "a: 1\na: 2\n",
        "<<: {steps: 1}\nsteps: 2\n",
        "? [a, b]\n: 1\n",
        "x: 2026-99-99\n",
        "\x00",
    ]
    for k in range(EACH):
        example, path = rng.choice(examples), tmp_path / "s.yaml"
        path.write_bytes(damaged(example.read_bytes(), rng))
        if k % 10 == 0:
            path.write_text(rng.choice(bombs))
        text = path.read_text(errors="replace")
        # what is read well enough must not begin: it has no data here, and is not drawn
        if example.name.startswith("compare"):
            command(books, f"settings {k}: {text[:200]!r}", "compare", path, "--check")
        else:
            kind = {"tune_shapes_data": "data", "tune_shapes_scorer": "scorer"}.get(
                example.stem, "run"
            )
            file = tmp_path / "file"
            file.write_text("")
            words = ["tune", kind, path, "--out", file]
            command(books, f"settings {k}: {text[:200]!r}", *words)
    assert not Path("ran").exists()
    books.check()


def test_weights(tmp_path: Path, books: Books) -> None:
    rng, mark = random.Random(f"{SEED} weights"), tmp_path / "ran"
    tensors = {"a": torch.zeros(4, 4), "b.lora_A.weight": torch.zeros(2)}
    torch.save({"state_dict": tensors}, tmp_path / "whole.pt")
    sources = [save(tensors), (tmp_path / "whole.pt").read_bytes()]
    pickles = [pickle.dumps(Code(mark)), pickle.dumps({"state_dict": Code(mark)})]
    for k in range(EACH):
        path = tmp_path / f"w.{rng.choice(('pt', 'bin', 'safetensors', 'ckpt'))}"
        path.write_bytes(rng.choice(pickles) if k % 8 == 0 else damaged(rng.choice(sources), rng))
        out = tmp_path / "o.safetensors"
        command(books, f"weights {k}", "convert", "any", path, out, "--force")
        if mark.exists():
            books.found("silently_wrong", f"weights {k} ran code")
            mark.rmdir()
    books.check()


def test_records(tmp_path: Path, books: Books) -> None:
    """`run.json`, thresholds, calibrations: damaged ones are told."""
    from steer.rewards.thresholds.threshold import Threshold

    rng, run = random.Random(f"{SEED} records"), tmp_path / "run"
    words = ["sample", "a red circle", "--steps", "1", "--compute", "1", "--out", run]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    record, image = (run / "run.json").read_bytes(), (run / "images" / "0000-0.png").read_bytes()
    Threshold.fit([0.1, 0.2, 0.3, 0.4], 0.5).save(tmp_path / "t.json")
    threshold = (tmp_path / "t.json").read_bytes()
    readers: list[Callable[[], Any]] = [lambda: Threshold.load(tmp_path / "t.json")]
    for k in range(EACH):
        (run / "run.json").write_bytes(damaged(record, rng))
        (run / "images" / "0000-0.png").write_bytes(image)
        command(books, f"run.json {k}: {(run / 'run.json').read_bytes()[:300]!r}", "report", run)
        if k % 3 == 0:
            (tmp_path / "t.json").write_bytes(damaged(threshold, rng))
            try:
                readers[0]()
            except (SteerError, ValueError):
                pass
            except Exception as error:
                books.found("tracebacks", f"threshold {k}: {error!r}")
            books.did("hostile inputs")
    books.check()
