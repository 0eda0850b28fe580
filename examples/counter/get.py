"""Fetches http://127.0.0.1:8000/ and prints the body; fails if nobody answers."""

import socket

with socket.create_connection(("127.0.0.1", 8000), timeout=5) as connection:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = b"".join(iter(lambda: connection.recv(4096), b""))
head, _, body = answer.partition(b"\r\n\r\n")
if not head.startswith(b"HTTP/1.1 200 "):
    raise SystemExit(f"unexpected answer: {head!r}")
print(body.decode(), end="")
