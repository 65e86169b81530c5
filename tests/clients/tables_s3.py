"""Tables on an S3 server (moto): written by `tidegate run --tables s3://...`, also across a kill,
read back by `tidegate sql` and by delta-rs."""

import json
import os
import subprocess

import pyarrow.compute as pc
from deltalake import DeltaTable

from harness import BINARY, CLOSING, DEVICES, ENDPOINT, PIPELINE, Tidegate, publish, totals
from s3 import S3

HALF = 300


def delta_rs(s3, table):
    return DeltaTable(f"s3://plant/history/cold_chain/{table}", storage_options=s3.env
                      ).to_pyarrow_table()


def doctor(s3, *arguments):
    """Exit code, and the rows that are not well."""
    done = subprocess.run([BINARY, "doctor", "tables", *arguments, "--json"], timeout=90, text=True,
                          env={**os.environ, **s3.env}, stdin=subprocess.DEVNULL,
                          capture_output=True)
    rows = [row for report in json.loads(done.stdout) for row in report["rows"]]
    return done.returncode, [row for row in rows if row["status"] in ("fail", "warn")], rows


def look_with_the_doctor(s3, tidegate):
    code, bad, rows = doctor(s3, "--data", str(tidegate.data))
    assert (code, bad) == (0, []), bad
    assert {"put if absent", "consistency", "rivals"} <= {row["check"] for row in rows}, rows
    listed = s3.client.list_objects_v2(Bucket="plant", Prefix="history/_tidegate_doctor")
    assert listed["KeyCount"] == 0, listed
    code, bad, _ = doctor(s3, "s3://nowhere/history")
    assert code == 1 and "create the bucket" in bad[0]["change"][0], bad
    # An object that the log names is gone.
    listed = s3.client.list_objects_v2(Bucket="plant", Prefix="history/cold_chain/readings/day")
    gone = listed["Contents"][0]["Key"]
    kept = s3.client.get_object(Bucket="plant", Key=gone)["Body"].read()
    s3.client.delete_object(Bucket="plant", Key=gone)
    code, bad, _ = doctor(s3, "--data", str(tidegate.data))
    assert code == 1 and gone.endswith(bad[0]["place"]["file"]), (gone, bad)
    s3.client.put_object(Bucket="plant", Key=gone, Body=kept)


def main():
    with S3() as s3:
        pipeline = PIPELINE.replace("SOURCE", ENDPOINT)
        with Tidegate(pipeline, tables="s3://plant/history", env=s3.env) as tidegate:
            # The kill comes after one commit and before, or in, the next.
            third = publish(tidegate.port(), range(HALF // 3), closing=False)
            tidegate.wait_for(third)
            publish(tidegate.port(), range(HALF // 3, HALF), closing=False)
            tidegate.kill()
            tidegate.start()
            publish(tidegate.port(), range(HALF, 2 * HALF))
            expected = {device: totals([*range(2 * HALF), CLOSING]) for device in DEVICES}
            tidegate.wait_for(expected)
            tidegate.stop()
            assert tidegate.per_device() == expected
            look_with_the_doctor(s3, tidegate)
            rows, total, _ = (sum(x) for x in zip(*expected.values()))
        readings, windows = delta_rs(s3, "readings"), delta_rs(s3, "per_minute")
        assert readings.num_rows == rows, (readings.num_rows, rows)
        assert pc.sum(readings["temperature"]).as_py() == total
        count, total, _ = totals(range(2 * HALF))
        assert pc.sum(windows["n"]).as_py() == count * len(expected)
        assert pc.sum(windows["t_sum"]).as_py() == total * len(expected)
        listed = s3.client.list_objects_v2(Bucket="plant", Prefix="history/cold_chain/readings/")
        print(f"S3: {rows} readings in {listed['KeyCount']} objects, none lost or doubled")


main()
