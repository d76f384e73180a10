"""What the tests that attack whole servers share: a bystander, room for descriptors, a server that can be measured."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import zlib
from pathlib import Path

import gevent
import pytest
from gevent.subprocess import PIPE, Popen

import geventws
from tests.support import make_frame, open_client

MIB = 1048576
#: An echo may take so long while the server is under attack.
PATIENCE = 1.0
ZERO_KEY = bytes(4)


def make_large_frame(payload, first=0x82):
    """Return a client's frame whose masking key changes nothing: the tests' own masking is slow."""
    header = make_frame(b"", first)[:1] + b"\xff" + len(payload).to_bytes(8, "big")
    assert len(payload) > 65535, "a shorter payload needs a shorter header"
    return header + ZERO_KEY + payload


def make_bomb(size):
    """Return deflate data (RFC 7692, 7.2.1) that inflates to so many MiB of zeros, a thousandth of that itself."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    # A full flush makes each MiB independent of those before, so one stands for all.
    block = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (block * size).removesuffix(b"\0\0\xff\xff")


@contextlib.contextmanager
def many_descriptors(count):
    """Allow this process and the children that it starts so many descriptors; skip where that is forbidden."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{count} descriptors are needed, and the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def bystander(http, path="/", *, tls=False):
    """Let a well-behaved client be served all the while: each of its echoes must come in time, and one after all."""
    with open_client(http, path, tls=tls) as client:
        working = gevent.spawn(work, client)
        try:
            yield
            # A newcomer is served, too.
            with open_client(http, path, tls=tls) as newcomer:
                check_echo(newcomer, "newcomer")
            gevent.sleep(0)
        finally:
            working.kill()
        if not isinstance(working.value, gevent.GreenletExit):
            working.get()


def work(client):
    number = 0
    while True:
        check_echo(client, f"bystander {number}")
        number += 1
        gevent.sleep(0.005)


def check_echo(client, text):
    """Send a message and have it back in time."""
    with gevent.Timeout(PATIENCE, AssertionError(f"no echo within {PATIENCE} s")):
        client.send(make_frame(text))
        assert client.read_frame() == (0x81, text.encode())


class EchoServer:
    """Run ``geventws echo`` in a child process; a `RawClient` takes it for an http server.

    What is sent on ``/broadcast`` goes to all connections there.

    Args:
        *flags: As ``geventws echo`` takes them.
        python: The interpreter, and with it the geventws that is installed there.
    """

    def __init__(self, *flags, python=sys.executable):
        environment = dict(os.environ)
        if python == sys.executable:
            environment["PYTHONPATH"] = str(Path(geventws.__file__).parent.parent)
        self.child = Popen(
            [python, "-m", "geventws", "echo", "--port", "0", *flags],
            # Not in the project's folder: the package would come from there.
            cwd=Path(__file__).parent,
            env=environment,
            stdout=PIPE,
            stderr=PIPE,
            text=True,
        )
        line = self.child.stdout.readline()
        match = re.search(r":(\d+)/\n", line)
        if match is None:
            raise RuntimeError(f"the server did not start: {line}{self.child.communicate()[1]}")
        self.server_port = int(match[1])
        self.address = ("127.0.0.1", self.server_port)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()

    def read_memory(self, name="VmRSS"):
        """Return the child's resident memory in octets; ``VmHWM`` is the peak that it ever had."""
        status = Path(f"/proc/{self.child.pid}/status").read_text(encoding="ascii")
        return int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024

    def terminate(self):
        """Send SIGTERM and wait for the end; return the exit status and what was written to standard error."""
        self.child.terminate()
        _, errors = self.child.communicate()
        return self.child.returncode, errors
