"""A stand-in for a forked process, which `torch.distributed.run --no-python` starts for each rank.

It passes its arguments, streams and environment on to the warm parent, forwards signals, and exits
as the forked process does. Started with `-I -S`, so that it starts fast. The process whose rank is
`IMPASTO_WARM_FRESH` becomes a fresh interpreter instead.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main():
    address, words = sys.argv[1], sys.argv[2:]
    if os.environ.get("RANK", "") == os.environ.get("IMPASTO_WARM_FRESH"):
        os.execv(sys.executable, [sys.executable, *words])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    for number in ENDING:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    request = {"words": words, "variables": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
    request["largest_file"] = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = json.dumps(request).encode()
    socket.send_fds(connection, [struct.pack("!I", len(data))], [0, 1, 2])
    connection.sendall(data)
    process = number_from(connection)
    for number in ENDING:
        signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    code = number_from(connection)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def number_from(connection):
    return struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))[0]


if __name__ == "__main__":
    main()
