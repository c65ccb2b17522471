"""A gRPC server without generated code. Prints its port, serves until it is ended."""

from concurrent import futures
import itertools

import grpc

flaky = itertools.count()


def unary(request, context):
    context.send_initial_metadata([("x-initial", "carried")])
    context.set_trailing_metadata([("x-trailer", "carried")])
    return request


def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no such review")


def stream(requests, context):
    for request in requests:
        yield request
    context.set_trailing_metadata([("x-trailer", "carried")])


def unavailable_twice(request, context):
    if next(flaky) < 2:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return request


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Stream": grpc.stream_stream_rpc_method_handler(stream),
    "UnavailableTwice": grpc.unary_unary_rpc_method_handler(unavailable_twice),
}
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.Echo", handlers)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"port {port}", flush=True)
server.wait_for_termination()
