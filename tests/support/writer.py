"""One of many programs that write, append, truncate, link, rename and delete in one directory until told to stop.

``python writer.py DIRECTORY SEED``: works until SIGTERM; a full volume is no error, anything else is. It prints how
many operations succeeded and how many were refused for lack of space. Standard library only, and nothing of ours.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
from pathlib import Path


def main(directory: Path, seed: int) -> int:
    """See above."""
    rng = random.Random(seed)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    print("started", flush=True)
    done = refused = 0
    while not ended:
        name = directory / f"{rng.randrange(3)}-{rng.randrange(120)}"
        other = directory / f"{rng.randrange(3)}-{rng.randrange(120)}"
        what = rng.randrange(8)
        try:
            if what <= 2:
                flags = os.O_CREAT | os.O_WRONLY | rng.choice([0, os.O_APPEND, os.O_TRUNC])
                fd = os.open(name, flags, 0o666)
                try:
                    for _ in range(rng.randrange(1, 6)):
                        os.pwrite(fd, b"x" * rng.choice([1, 700, 4096, 50_000, 300_000]), rng.randrange(1 << 20))
                finally:
                    os.close(fd)
            elif what == 3:
                os.truncate(name, rng.choice([0, 1, 5000, 1 << 19, 1 << 24]))
            elif what == 4:
                os.rename(name, other)
            elif what == 5:
                os.link(name, other)
            elif what == 6:
                os.symlink("t" * rng.choice([10, 500]), name)
            else:
                os.unlink(name)
            done += 1
        except OSError as e:
            if e.errno == errno.ENOSPC:
                refused += 1
                if rng.random() < 0.3:
                    Path(other).unlink(missing_ok=True)
            elif e.errno not in {
                errno.ENOENT,
                errno.EEXIST,
                errno.ELOOP,
                errno.EINVAL,
                errno.ESTALE,
                errno.ENAMETOOLONG,
            }:
                raise
    print(done, refused, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
