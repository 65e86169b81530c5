"""Two processes on copies of one data folder write to the same tables on an S3 server (moto): the
later one goes on, the older one stops with exit code 3 within ten seconds, and no epoch is committed
twice. (Without TIDEGATE_LONG=1, where other things run beside it, two starts may come to them.)"""

import json
import os
import shutil
import time

from harness import CLOSING, DEVICES, ENDPOINT, PIPELINE, Tidegate, eventually, publish, totals
from s3 import S3

FENCED, FENCED_WITHIN_S = 3, 10
LONG = os.environ.get("TIDEGATE_LONG") == "1"
HALF = 200


def committed_epochs(s3):
    """The epochs of the commits of each table, in the order of its log."""
    tables = {}
    for name in s3.names("history/"):
        if "/_delta_log/" in name and name.endswith(".json"):
            epochs = tables.setdefault(name.split("/_delta_log/")[0], [])
            for line in s3.read(name).decode().splitlines():
                action = json.loads(line)
                # Others count the rows of a day.
                if "txn" in action and "/rows/" not in action["txn"]["appId"]:
                    epochs.append(action["txn"]["version"])
    return tables


def copy(data, to):
    """A copy of a data folder that is written meanwhile: old files may vanish, then again."""
    def look():
        shutil.rmtree(to, ignore_errors=True)
        try:
            shutil.copytree(data, to, ignore=shutil.ignore_patterns("*.sock"))
        except (shutil.Error, FileNotFoundError):
            return False
        return True
    eventually("a copy of the data folder", look)


def ended(tidegate):
    return tidegate.process.poll() is not None


def main():
    with S3() as s3:
        pipeline = PIPELINE.replace("SOURCE", ENDPOINT)
        def instance():
            return Tidegate(pipeline, tables="s3://plant/history", env=s3.env,
                            more=["--checkpoint-every", "500ms"])
        begun = time.monotonic()
        with instance() as older:
            port = older.port()
            # A start of this binary on this machine comes to it.
            within_s = FENCED_WITHIN_S + (0 if LONG else 2 * (time.monotonic() - begun))
            first = publish(port, range(HALF), closing=False)
            older.wait_for(first)
            # What the sessions left goes to the tables as well.
            last = {}

            def quiet():
                before, last["now"] = last.get("now"), committed_epochs(s3)
                return before == last["now"]
            time.sleep(2)
            eventually("no commit comes any more", quiet)
            later = instance()
            copy(older.data, later.data)
            begun = time.monotonic()
            with later:
                eventually("the end of the older process", lambda: ended(older))
                took_s = time.monotonic() - begun
                assert took_s < within_s, (took_s, within_s)
                assert older.process.returncode == FENCED, (older.process.returncode, older.lines)
                publish(later.port(), range(HALF, 2 * HALF))
                expected = {device: totals([*range(2 * HALF), CLOSING]) for device in DEVICES}
                later.wait_for(expected)
                later.stop()
                assert later.per_device() == expected
        epochs = committed_epochs(s3)
        assert epochs and all(e == sorted(set(e)) for e in epochs.values()), epochs
        taken = [name for name in s3.names("history/_tidegate/") if "ended" not in name]
        assert [name[-6:] for name in taken] == ["1.json", "2.json"], taken
        print(f"S3: the older process stopped after {took_s:.1f} s of at most {within_s:.1f}, "
              f"{sum(map(len, epochs.values()))} commits, no epoch twice")


main()
