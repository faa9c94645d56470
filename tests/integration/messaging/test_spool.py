"""Writers of a shared spool are killed at random moments, again and again: nothing that they were promised is lost."""

import inspect
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from messaging.spool import LEASE_SECONDS, Spool

KILLS = 40
WRITERS = 2
LIMIT_BYTES = 64 << 20
# Appends batches of one to five records, and prints them once they are promised to be on disk. Every few batches it
# takes records, too, prints what it "sent", and removes or gives them back: a kill may come between any two of these.
WRITER = inspect.cleandoc("""
    import random, sys
    from pathlib import Path
    from messaging.spool import Spool

    name, chance = sys.argv[2], random.Random(int(sys.argv[3]))
    spool, number = Spool(Path(sys.argv[1]), 64 << 20), 0
    while True:
        batch = [f"{name} {number + more}".encode() for more in range(chance.randint(1, 5))]
        spool.append([record + b" " + b"x" * chance.randint(0, 2000) for record in batch])
        number += len(batch)
        print("\\n".join(f"kept {record.decode()}" for record in batch), flush=True)
        if not chance.randrange(4):
            records = spool.take(chance.randint(1, 8))
            if chance.randrange(3):
                sent = [b" ".join(record.data.split(b" ")[:2]).decode() for record in records]
                print("\\n".join(f"sent {record}" for record in sent), flush=True)
                spool.remove(records)
            else:
                spool.give_back(records)
""")


class Writer:
    """A process, and the lines it has printed in full."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self._lines: list[str] = []
        self._begun = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), name, str(seed)], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self._lines.append(line.strip())
                self._begun.set()

    def kill_after(self, seconds: float) -> list[str]:
        """From its first promise on."""
        assert self._begun.wait(60)
        time.sleep(seconds)
        self._process.kill()
        self._process.wait(60)
        self._reader.join(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._lines


def test_no_record_is_lost_when_writers_are_killed(tmp_path: Path) -> None:
    chance = random.Random()
    seed = chance.randrange(1 << 30)
    print(f"seed {seed}")
    chance.seed(seed)
    kept: set[str] = set()
    sent: list[str] = []
    for round_number in range(KILLS // WRITERS):
        writers = [Writer(tmp_path, f"{round_number}-{n}", chance.randrange(1 << 30)) for n in range(WRITERS)]
        for writer in writers:
            for line in writer.kill_after(chance.uniform(0.0, 0.05)):
                verb, _, record = line.partition(" ")
                if verb == "kept":
                    kept.add(record)
                elif record:
                    sent.append(record)
    survivor = Spool(tmp_path, LIMIT_BYTES)
    deadline = time.monotonic() + 6 * LEASE_SECONDS
    while survivor.size():  # what the killed had taken comes when their leases end
        assert time.monotonic() < deadline
        records = survivor.take(1000)
        sent += [" ".join(record.data.decode().split(" ")[:2]) for record in records]
        survivor.remove(records)
        if not records:
            time.sleep(0.1)
    survivor.close()
    assert len(kept) > KILLS
    assert kept <= set(sent), f"lost: {sorted(kept - set(sent))[:10]}"
    again = len(sent) - len(set(sent))
    assert again <= KILLS * 8, "sent twice is only what a killed process had in its hands"
