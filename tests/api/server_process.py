"""A server as a process of its own, for tests: its log, its address, signals and its exit status."""

import queue
import re
import signal
import subprocess
import sys
import threading

import httpx

from ..waiting import HANG_SECONDS


class ServerProcess:
    """`python *arguments`; reads stderr all the time, so that a full pipe never holds the server up."""

    def __init__(self, *arguments, env=None, keep_lines=True):
        command = [sys.executable, *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self.lines = []
        self._keep_lines = keep_lines
        self._new = queue.Queue()
        self._waiting = True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            if self._keep_lines:
                self.lines.append(line.rstrip())
            if self._waiting:
                self._new.put(line)
        self._new.put(None)

    def wait_for(self, text):
        """The next line of the log that has this text."""
        while (line := self._new.get(timeout=HANG_SECONDS)) is not None:
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in\n" + "\n".join(self.lines))

    def wait_until_ready(self):
        """Its address, once it takes requests; later lines cannot be waited for unless all are kept."""
        self.url = re.search(r"http://[\d.]+:\d+", self.wait_for("listening on")).group()
        self.wait_for("ready")
        self._waiting = self._keep_lines
        return self.url

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=HANG_SECONDS, **options)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        """Its exit status."""
        status = self.process.wait(HANG_SECONDS)
        self._reader.join(HANG_SECONDS)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(HANG_SECONDS)
        self.process.stderr.close()
