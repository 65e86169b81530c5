"""Tables on an S3 server (moto): written by `tidegate run --tables s3://...`, also across a kill,
read back by `tidegate sql` and by delta-rs."""

import pyarrow.compute as pc
from deltalake import DeltaTable

from harness import CLOSING, DEVICES, ENDPOINT, PIPELINE, Tidegate, publish, totals
from s3 import S3

HALF = 300


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
