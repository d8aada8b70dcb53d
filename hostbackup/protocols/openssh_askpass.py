"""What `ssh` runs when it wants something: carries a question to the process that started it, and the answer back.

Run as a script by a bare interpreter, so the standard library is all there is. `SOCKET VERB WORDS…`: with the verb `line` the answer is an open
TCP connection, handed on over standard output (ProxyUseFdpass of ssh_config(5)); else it is text. Nobody answers: exit 1, and nothing is printed.
"""

from __future__ import annotations

import os
import socket
import sys


def main(arguments: list[str]) -> int:
    path, verb, *words = map(os.fsencode, arguments)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(path)
        # What kind of question a prompt is: `confirm` and `none` want no secret (ssh's readpass).
        kind = os.environb.get(b"SSH_ASKPASS_PROMPT", b"")
        line.sendall(b"\0".join([verb, kind, *words]))
        line.shutdown(socket.SHUT_WR)
        if verb == b"line":
            _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
            with socket.socket(fileno=os.dup(1)) as ssh:
                socket.send_fds(ssh, [b"\0"], descriptors)
            return 0
        answer = b""
        while more := line.recv(65536):
            answer += more
    if not answer.startswith(b"+"):
        return 1
    sys.stdout.buffer.write(answer[1:])
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except (OSError, ValueError, IndexError):
        code = 1  # the process that started us is gone, or has hung up
    sys.exit(code)
