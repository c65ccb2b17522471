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

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own number as the status.
    #[derive(Clone)]
    struct Numbered<const N: u16>;

    impl NamedService for Numbered<201> {
        const NAME: &'static str = "a.First";
    }

    impl NamedService for Numbered<202> {
        const NAME: &'static str = "a.Second";
    }

    impl<const N: u16> Service<Request<Body>> for Numbered<N> {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Outcome>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = N.try_into().unwrap();
            ready(Ok(response))
        }
    }

    #[tokio::test]
    async fn calls_go_where_their_path_says() {
        let mut services = Services(Numbered::<201>, Numbered::<202>);
        for (path, status, grpc) in [
            ("/a.First/Method", 201, None),
            ("/a.Second/Method", 202, None),
            ("/a.First", 200, Some("12")),
            ("/a.Third/Method", 200, Some("12")),
            ("/", 200, Some("12")),
        ] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let response = services.call(request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(
                response.headers().get("grpc-status").map(|code| code.to_str().unwrap()),
                grpc,
                "{path}"
            );
        }
    }
}
