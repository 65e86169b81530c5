"""mqtt.js on the endpoint: node/mqttjs.js publishes and subscribes and checks what it gets; what it
published is compared here with the table."""

import json
import subprocess

from harness import ENDPOINT, PIPELINE, Tidegate, node, totals


def main():
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        done = subprocess.run(node("mqttjs.js", tidegate.port(), "all"), capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 0, done.stderr + "\n".join(tidegate.lines)
        published = json.loads(done.stdout)
        expected = {device: totals(seqs) for device, seqs in published.items()}
        tidegate.wait_for(expected)
        tidegate.stop()
        assert tidegate.per_device() == expected
    rows = sum(n for n, _, _ in expected.values())
    print(f"mqtt.js: {len(expected)} devices, {rows} readings, none lost or doubled")


main()
