//! Two gRPC services on one port, told apart by the path of the call. (tonic's own router would bring in a web
//! framework for the same.)

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

type Outcome = Result<Response<Body>, Infallible>;

/// Calls of `A`'s and of `B`'s service go there; others get `UNIMPLEMENTED`.
#[derive(Debug, Clone)]
pub struct Services<A, B>(pub A, pub B);

impl<A, B> Service<Request<Body>> for Services<A, B>
where
    A: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    B: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Either<A::Future, B::Future>, Ready<Outcome>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The generated servers are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match service_name(request.uri().path()) {
            name if name == A::NAME => Either::Left(Either::Left(self.0.call(request))),
            name if name == B::NAME => Either::Left(Either::Right(self.1.call(request))),
            _ => Either::Right(ready(Ok(Status::unimplemented("no such service here").into_http()))),
        }
    }
}

/// `/package.Service/Method` names `package.Service`.
fn service_name(path: &str) -> &str {
    path.strip_prefix('/')
        .and_then(|rest| rest.split_once('/'))
        .map_or("", |(service, _)| service)
}
