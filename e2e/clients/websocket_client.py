"""Opens a WebSocket through a proxy, sends messages and prints those that come back: PROXY URL MESSAGE..."""

import sys

from websockets.sync.client import connect

proxy, url, *messages = sys.argv[1:]
with connect(url, proxy=proxy, compression=None, open_timeout=20, close_timeout=20) as socket:
    for message in messages:
        socket.send(message)
        print(socket.recv(timeout=20))
print("closed", socket.close_code)
