"""A web server that remembers: it counts its visitors in memory only, so its count shows whether a process went on or began again.

Written on bare sockets because Debian's python3-minimal has no http.server.
"""

import os
import socket
import time


def main():
    server = socket.create_server(("127.0.0.1", 8000))
    born, visits = time.time(), 0
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as request:
            if not request.readline():
                continue
            while request.readline().strip():
                pass
            visits += 1
            body = f"visit {visits} of process {os.getpid()} on {socket.gethostname()}\n".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nX-Born: {born}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)


main()
