"""mosquitto_pub as a device on the endpoint: MQTT 3.1.1 and 5, QoS 0 and 1, one message or many."""

import subprocess

from harness import ENDPOINT, PIPELINE, Tidegate, payload, totals

MANY = 500


def mosquitto_pub(port, version, qos, device, *arguments, stdin=""):
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-V", version, "-q", str(qos),
               "-i", device, "-t", f"plant/north/{device}/telemetry", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


def main():
    expected = {}
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        port = tidegate.port()
        for version in ["mqttv311", "mqttv5"]:
            for qos in [0, 1]:
                device = f"{version}-qos{qos}"
                lines = "".join(payload(seq) + "\n" for seq in range(MANY))
                many = mosquitto_pub(port, version, qos, device, "-l", stdin=lines)
                assert many.returncode == 0, many
                one = mosquitto_pub(port, version, qos, device, "-m", payload(MANY))
                assert one.returncode == 0, one
                expected[device] = totals(range(MANY + 1))
        tidegate.wait_for(expected)
        tidegate.stop()
        assert tidegate.per_device() == expected
    refused_without_password()
    print(f"mosquitto_pub: {len(expected)} devices, {MANY + 1} readings each, none lost or doubled")


def refused_without_password():
    source = ENDPOINT + '\nusers = { "gateway-1" = "${env:GATEWAY_PASSWORD}" }'
    secret = {"GATEWAY_PASSWORD": "open sesame"}
    with Tidegate(PIPELINE.replace("SOURCE", source), env=secret) as tidegate:
        port = tidegate.port()
        for version in ["mqttv311", "mqttv5"]:
            none = mosquitto_pub(port, version, 1, "d", "-m", payload(0))
            assert none.returncode != 0, f"{version} without a password was let in"
            wrong = mosquitto_pub(port, version, 1, "d", "-m", payload(0), "-u", "gateway-1",
                                  "-P", "wrong")
            assert wrong.returncode != 0, f"{version} with a wrong password was let in"
            right = mosquitto_pub(port, version, 1, version, "-m", payload(7), "-u", "gateway-1",
                                  "-P", "open sesame")
            assert right.returncode == 0, right
        tidegate.wait_for({"mqttv311": totals([7]), "mqttv5": totals([7])})
        assert "open sesame" not in "\n".join(tidegate.lines), "a secret was printed"


main()
