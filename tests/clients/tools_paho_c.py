"""paho's C clients on the endpoint (paho_c_pub and paho_c_sub are asynchronous, paho_cs_pub and
paho_cs_sub are not), both versions, each QoS, retained messages, a will, a user property."""

import subprocess

from harness import ENDPOINT, PATIENCE_S, PIPELINE, Tidegate, eventually, payload, totals
from tools import Child, lines, topic

MANY, BUFFERED = 150, 50


class Port:
    def __init__(self, port):
        self.port = port

    def command(self, program, version, qos, device, *arguments):
        return ["stdbuf", "-oL", program, "-h", "127.0.0.1", "-p", str(self.port), "-V", version,
                "-q", str(qos), "-t", topic(device), *arguments]

    def publish(self, program, version, qos, device, message, *arguments):
        command = self.command(program, version, qos, device, "-i", f"pub-{device}", "-m", message)
        done = subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done

    def publish_lines(self, program, version, qos, device, reader):
        """As many as the program buffers at a time. It reads on after the end of its input, so that
        stays open, and the program is ended when all has arrived."""
        command = self.command(program, version, qos, device, "-i", f"pub-{device}",
                               "--maxdatalen", "1000")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, text=True)
        before = len(reader.messages())
        for seq in range(0, MANY, BUFFERED):
            text = "".join(line + "\n" for line in lines(range(seq, seq + BUFFERED)))
            process.stdin.write(text)
            process.stdin.flush()
            eventually("what was published",
                       lambda: len(reader.messages()) >= before + seq + BUFFERED)
        process.kill()
        process.wait()

    def subscribe(self, program, version, qos, device, *arguments):
        return Child(self.command(program, version, qos, device, "-i", f"sub-{device}", *arguments))


def each_qos(port, version, expected):
    for program in ["paho_c", "paho_cs"]:
        for qos in [0, 1, 2]:
            device = f"{program}-{version}-q{qos}"
            reader = port.subscribe(f"{program}_sub", version, qos, device)
            # It says nothing when it is subscribed, so it is asked with retained messages.
            knock = payload(MANY)
            port.publish("paho_c_pub", version, 1, device, knock, "-r")
            eventually(f"{device} to subscribe", lambda: knock in list(reader.said))
            port.publish_lines(f"{program}_pub", version, qos, device, reader)
            reader.expect([knock, *lines(range(MANY))])
            reader.kill()
            expected[device] = totals(range(MANY + 1))


def will(port, expected):
    for version in ["311", "5"]:
        device = f"paho_c-{version}-will"
        victim = port.subscribe("paho_c_sub", version, 1, "victim-" + device, "--will-topic",
                                topic(device), "--will-payload", payload(1), "--will-qos", "2")
        port.publish("paho_c_pub", version, 1, "victim-" + device, payload(0), "-r")
        victim.expect([payload(0)])
        victim.kill()
        expected["victim-" + device], expected[device] = totals([0]), totals([1])


def main():
    expected = {}
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        port = Port(tidegate.port())
        for version in ["311", "5"]:
            each_qos(port, version, expected)
        will(port, expected)
        port.publish("paho_c_pub", "5", 2, "paho_c-property", payload(3), "--user-property", "unit",
                     "°C", "--message-expiry", "60")
        expected["paho_c-property"] = totals([3])
        tidegate.wait_for(expected)
        tidegate.stop()
        assert tidegate.per_device() == expected
    rows = sum(n for n, _, _ in expected.values())
    print(f"paho's C clients: {len(expected)} devices, {rows} readings, none lost or doubled")


main()
