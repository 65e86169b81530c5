"""Command-line clients as child processes whose lines are read."""

import subprocess
import threading

from harness import PATIENCE_S, eventually, payload


def topic(device):
    return f"plant/north/{device}/telemetry"


def lines(seqs):
    return [payload(seq) for seq in seqs]


class Child:
    """A program that prints each message it gets as a line that begins with `MARK`."""

    MARK = ""

    def __init__(self, command):
        self.said = []
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))

    def messages(self):
        """A message is a reading, or begins with the mark."""
        begin = self.MARK or "{"
        said = list(self.said)
        return [line[len(self.MARK):] for line in said if line.startswith(begin)]

    def expect(self, messages):
        """Waits for the messages; they must be exactly these, in this order."""
        try:
            eventually("the messages", lambda: len(self.messages()) >= len(messages))
        except AssertionError:
            raise AssertionError(f"{len(self.messages())} of {len(messages)} messages came; "
                                 f"last {self.said[-5:]}") from None
        wrong = [pair for pair in zip(self.messages(), messages) if pair[0] != pair[1]]
        assert not wrong and len(self.messages()) == len(messages), f"got, expected: {wrong[:3]}"

    def ended(self):
        """Its exit code, when it has ended."""
        code = self.process.wait(timeout=PATIENCE_S)
        self.reader.join(PATIENCE_S)
        return code

    def stop(self):
        self.process.terminate()
        self.ended()

    def kill(self):
        self.process.kill()
        self.ended()
