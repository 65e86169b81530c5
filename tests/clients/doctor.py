"""The doctor and mosquitto: with its default settings it names the lines to change and fails; with
them changed it passes. It leaves no session behind."""

import json
import subprocess

from harness import BINARY, PIPELINE, Mosquitto, Tidegate, subscriber

LINES = ["max_queued_messages 0", "max_queued_bytes 0", "persistence true", "autosave_interval 1",
         "autosave_on_changes true", "persistent_client_expiration"]
RELIABLE = Mosquitto.RELIABLE.replace("messages 1000", "messages 0") + Mosquitto.SAVE_ALWAYS


def doctor(*arguments):
    done = subprocess.run([BINARY, "doctor", "source", *arguments], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=90)
    return done.returncode, done.stdout, done.stderr


def main():
    with Mosquitto(settings=Mosquitto.DEFAULTS) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        for version in ["3.1.1", "5"]:
            code, out, error = doctor(url, "--mqtt", version)
            assert code == 1, (code, out, error)
            for line in LINES:
                assert line in out, f"`{line}` is not in:\n{out}"
            assert "delivered 1000" in out, out
        assert "max_inflight_messages 0" in doctor(url, "--mqtt", "3.1.1")[1]
        # With its file: the line below which each of them goes.
        last = len(broker.config.read_text().splitlines())
        out = doctor(url, "--broker-config", str(broker.config))[1]
        line = f"{broker.config}:{last}: below this line: max_queued_messages 0"
        assert line in out, f"`{line}` is not in:\n{out}"
        assert "persistent_client_expiration" not in out, "without it sessions are kept"
    with Mosquitto(settings=RELIABLE) as broker:
        source = subscriber(broker)
        with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            # The product runs meanwhile; its session is not touched.
            taken = broker.log.read_text(errors="replace").count("tidegate-test")
            conf = ["--broker-config", str(broker.config)]
            code, out, error = doctor(str(tidegate.pipeline), "--json", *conf)
            assert code == 0, (code, out, error)
            rows = {row["check"]: row for row in json.loads(out)[0]["rows"]}
            for check in ["connection", "topics", "qos", "session", "queue", "window", "redelivery"]:
                assert rows[check]["status"] == "ok", rows[check]
            assert rows["restart"]["status"] == "ok", rows["restart"]
            again = broker.log.read_text(errors="replace")
            assert "tidegate-test already connected" not in again
            tidegate.stop()
        assert taken
        # What the doctor left is told by the store that the broker writes when it ends.
        broker.stop()
        left = b"tidegate-doctor-" in (broker.folder / "mosquitto.db").read_bytes()
        assert not left, "a session of the doctor is still there"
        broker.start()
        for version in ["3.1.1", "5"]:
            code, out, error = doctor(f"mqtt://127.0.0.1:{broker.port}", "--mqtt", version)
            assert code == 0, (code, out, error)
    code, out, error = doctor(f"mqtt://127.0.0.1:{broker.port}")
    assert code == 1 and "nothing listens there" in out, (code, out, error)
    print("mosquitto's defaults fail with the lines to change, the reliable settings pass")


main()
