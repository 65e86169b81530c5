"""Tables on an S3 server (moto): written by `tidegate run --tables s3://...`, also across a kill,
read back by `tidegate sql` and by delta-rs."""

import os
import subprocess
import sys

import boto3
import pyarrow.compute as pc
from deltalake import DeltaTable

from harness import (CLOSING, DEVICES, ENDPOINT, PIPELINE, Tidegate, eventually, free_port, listens,
                     publish, totals)

HALF = 300


class S3:
    """moto as a server, with one bucket; it keeps everything in memory."""

    def __init__(self):
        self.port = free_port()
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        eventually("the S3 server", lambda: listens(self.port))
        os.environ.update(self.env)
        self.client = boto3.client("s3", endpoint_url=self.env["AWS_ENDPOINT_URL"])
        self.client.create_bucket(Bucket="plant")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def delta_rs(s3, table):
    return DeltaTable(f"s3://plant/history/cold_chain/{table}", storage_options=s3.env
                      ).to_pyarrow_table()


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
