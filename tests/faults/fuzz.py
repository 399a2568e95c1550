"""Coverage-guided fuzzing of every parser that reads bytes from outside: `python tests/faults/fuzz.py --parser NAME --seconds N`.

It uses atheris where it is installed (`pip install atheris`), and else random mutation of the same seeds, and says which.
A parser fails when it raises anything but what its callers name to the user.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dirty
import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

LARGEST = 4096  # bytes of an input


def _file(suffix: str) -> Callable[[bytes], None]:
    """Return a parser of a file that DATA names, and that `predict` takes where it is no list."""

    def parse(content: bytes) -> None:
        from regraft.data.load import load_dataset
        from regraft.data.stream import iterate_images
        from regraft.errors import UserError

        path = HERE / f"x{suffix}"
        path.write_bytes(content)
        try:
            table = load_dataset(path, HERE / "home")
            _ = table.fingerprint
            table.split()
        except UserError:
            pass
        finally:
            shutil.rmtree(HERE / "home", ignore_errors=True)
        for one in (
            iterate_images([path]) if suffix in (".zip", ".tar", ".tar.gz", ".parquet") else ()
        ):
            one.name.encode()
            with contextlib.suppress(OSError, ValueError):
                one.read()

    return parse


def _image(content: bytes) -> None:
    from regraft.data.decode import decode_image, image_size

    try:
        shape = image_size(content)
        if shape[0] * shape[1] < 1_000_000:  # larger ones are slow, and tried by dirty.py
            assert decode_image(content).shape == (*shape, 3)
    except (OSError, ValueError, SyntaxError, EOFError):
        pass


def _plan(content: bytes) -> None:
    from regraft.errors import UserError
    from regraft.plans.toml import read_plan, write_plan

    (HERE / "plan.toml").write_bytes(content)
    try:
        made = read_plan(HERE / "plan.toml")
        write_plan(made, HERE / "plan.toml")
        assert read_plan(HERE / "plan.toml").digest == made.digest
    except UserError:
        pass


def _head(content: bytes) -> None:
    from regraft.plans.head import parse_head

    with contextlib.suppress(ValueError):
        parse_head(content.decode("utf-8", "replace"))


def _budget(content: bytes) -> None:
    from regraft.errors import UserError
    from regraft.probing.halving import parse_duration

    with contextlib.suppress(UserError):
        assert parse_duration(content.decode("utf-8", "replace")) > 0


def _change(content: bytes) -> None:
    from regraft.errors import UserError
    from regraft.plans.toml import override_plan

    with contextlib.suppress(UserError):
        override_plan(
            {"backbone": "test_resnet", "resolution": 32, "phases": [{}]},
            content.decode("utf-8", "replace").split("\0"),
        )


def _run(content: bytes) -> None:
    """The first byte says which file of a run the rest is."""
    from regraft.errors import UserError
    from regraft.runs.folder import load_run

    names = (
        "scores.json",
        "classes.json",
        "plan.toml",
        "test.json",
        "history.csv",
        "predictions.npz",
    )
    top = HERE / "run"
    if not top.is_dir():
        top.mkdir()
        for name, text in RUN.items():
            (top / name).write_text(text)
    name = names[content[0] % len(names)] if content else names[0]
    (top / name).write_bytes(content[1:])
    try:
        found = load_run(top)
        for read in (lambda: found.test, found.history, found.predictions):
            with contextlib.suppress(UserError):
                read()
    except UserError:
        pass
    if name in RUN:
        (top / name).write_text(RUN[name])
    else:
        (top / name).unlink()


RUN = {
    "scores.json": (
        '{"backbone": "test_resnet", "technique": "mine", "resolution": 32, "data": "photos", '
        '"plan_digest": "0", "split_digest": "0", '
        '"val": {"accuracy": 1.0, "loss": 0.5, "n": 3, "ci95": [0.4, 1.0]}}'
    ),
    "classes.json": '["a", "b"]',
    "plan.toml": f"{dirty.HEAD}[[phases]]\n",
    "history.csv": "epoch,loss\n0,1.0\n",
}


def _npz_seed() -> bytes:
    path = HERE / "seed.npz"
    np.savez_compressed(path, images=np.zeros((6, 2, 2), np.uint8), labels=np.array([0, 1] * 3))
    return path.read_bytes()


PARSERS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "image": (_image, lambda: [dirty.saved(dirty.picture(8, 8), form) for form, _ in dirty.FORMS]),
    "zip": (_file(".zip"), lambda: [dirty.zipped(dirty.photos())]),
    "tar": (_file(".tar"), lambda: [dirty.tarred(dirty.photos())]),
    "tar.gz": (_file(".tar.gz"), lambda: [dirty.tarred(dirty.photos(), "w:gz")]),
    "csv": (
        _file(".csv"),
        lambda: [f"path,label,split,group\n{dirty.ROWS}".encode(), b"\xef\xbb\xbfpath,label\n"],
    ),
    "parquet": (
        _file(".parquet"),
        lambda: [
            dirty.parquet_of(HERE, {"image": dirty.shots(4), "label": [0, 1] * 2}).read_bytes()
        ],
    ),
    "npz": (_file(".npz"), lambda: [_npz_seed()]),
    "plan": (
        _plan,
        lambda: [
            f'{dirty.HEAD}head = "dense 5 relu"\nuntil = ["a"]\n[[phases]]\nlr = 1.0\nl2 = [1.0]\n'.encode()
        ],
    ),
    "head": (_head, lambda: [b"flatten, dense 256 relu, dropout 0.5, bn"]),
    "budget": (_budget, lambda: [b"1.5h", b"90s", b"5 min"]),
    "change": (_change, lambda: [b"phases.0.lr=3e-4\0head=dense 5"]),
    "run": (
        _run,
        lambda: (
            [bytes([number]) + text.encode() for number, text in enumerate(RUN.values())]
            + [b"\x05" + _npz_seed()]
        ),
    ),
}
HERE = Path()


def mutated(seeds: list[bytes], dice: random.Random) -> bytes:
    """Return a seed with bytes changed, cut out, doubled or put in."""
    made = bytearray(dice.choice(seeds))
    for _ in range(dice.randrange(1, 8)):
        at = dice.randrange(len(made) + 1)
        how = dice.randrange(4)
        if how == 0 and made:
            made[min(at, len(made) - 1)] = dice.randrange(256)
        elif how == 1:
            del made[at : at + dice.randrange(1, 20)]
        elif how == 2:
            made[at:at] = dice.randbytes(dice.randrange(1, 8))
        else:
            made[at:at] = made[at : at + dice.randrange(1, 20)]
    return bytes(made[: LARGEST * 16])


def main() -> None:
    """Fuzz one parser for some seconds, and print how many inputs it took."""
    global HERE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parser", required=True, choices=PARSERS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--blind", action="store_true", help="random mutation even where atheris is there"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        HERE = Path(scratch)
        dirty.good(HERE)
        parse, seeds = PARSERS[given.parser]
        if atheris is None or given.blind:
            dice, count, until, known = (
                random.Random(0),
                0,
                time.monotonic() + given.seconds,
                seeds(),
            )
            while time.monotonic() < until:
                parse(mutated(known, dice))
                count += 1
            print(
                f"{given.parser}: {count:,} inputs by random mutation in {given.seconds} s, no fault"
            )
            return
        corpus = HERE / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / str(number)).write_bytes(seed)
        with atheris.instrument_imports(
            include=["regraft", "zipfile", "tarfile", "csv", "tomllib", "PIL", "numpy.lib"]
        ):
            import regraft.data.load
            import regraft.plans.toml
            import regraft.runs.folder  # noqa: F401
        options = [
            f"-max_total_time={given.seconds}",
            "-timeout=30",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={Path.cwd()}/",
            "-print_final_stats=1",
            "-verbosity=1",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], parse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
