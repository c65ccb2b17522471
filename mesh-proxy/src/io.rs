//! Streams of which some bytes were read already, to find out what they carry.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Yields the bytes that were read already, then the stream. Writes go straight through.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Prefixed<S> {
    /// Puts `prefix` before what `inner` has still to say.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }

    /// The bytes that were read ahead and not yet taken.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// The stream underneath, for its addresses and options.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// As [`Self::get_ref`]. Reading from it directly loses the order of bytes while a prefix is left.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Both parts: the bytes not yet taken come first.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            // Connections outlive their first bytes: give the buffer back.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn prefix_comes_first_in_any_portions_and_writes_pass() {
        for portion in 1..6 {
            let (near, mut far) = duplex(64);
            far.write_all(b"stream").await.unwrap();
            let mut stream = Prefixed::new(Bytes::from_static(b"prefix-"), near);
            let mut got = Vec::new();
            while got.len() < 13 {
                let mut buffer = vec![0; portion];
                let length = stream.read(&mut buffer).await.unwrap();
                got.extend_from_slice(&buffer[..length]);
            }
            assert_eq!(got, b"prefix-stream");
            stream.write_all(b"back").await.unwrap();
            let mut back = [0; 4];
            far.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"back");
        }
    }
}
