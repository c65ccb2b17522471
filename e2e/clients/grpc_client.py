"""Calls a method of the echo server and prints what came of it as JSON: HOST:PORT METHOD MESSAGE...

The proxy is taken from the environment. Several messages go one by one, each after the answer to the one before.
"""

import json
import queue
import sys

import grpc

target, method, *messages = sys.argv[1:]
outcome = {"code": "OK", "messages": [], "trailers": {}}
channel = grpc.insecure_channel(target)
try:
    path = f"/echo.Echo/{method}"
    if method == "Stream":
        requests = queue.Queue()
        call = channel.stream_stream(path)(iter(requests.get, None), timeout=20)
        for message in messages:
            requests.put(message.encode())
            outcome["messages"].append(next(call).decode())
        requests.put(None)
        for _ in call:
            outcome["messages"].append("one too many")
    else:
        answer, call = channel.unary_unary(path).with_call(messages[0].encode(), timeout=20)
        outcome["messages"].append(answer.decode())
        outcome["initial"] = dict(call.initial_metadata())
    outcome["trailers"] = {key: str(value) for key, value in call.trailing_metadata()}
except grpc.RpcError as error:
    outcome["code"] = error.code().name
    outcome["details"] = error.details()
print(json.dumps(outcome))
