//! Conversations with the kernel over netlink: a request, and its answers up to the one that ends them.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use super::InterceptError;

/// The kernel answers at once; this only keeps a pod from hanging in its init container.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than the kernel puts into one datagram.
const LARGEST_ANSWER: usize = 256 * 1024;

/// Length of a netlink message's header, in which the length of the whole comes first.
pub(super) const HEADER: usize = 16;

/// A socket to one part of the kernel.
pub(super) struct Conversation {
    socket: Socket,
    part: Part,
    what: &'static str,
}

/// Whom a conversation is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Netfilter,
    Routing,
}

/// A datagram of answers is read message by message.
pub(super) struct Answers {
    bytes: Vec<u8>,
    at: usize,
}

impl Conversation {
    pub fn open(part: Part, what: &'static str) -> Result<Self, InterceptError> {
        let protocol = match part {
            Part::Netfilter => NETLINK_NETFILTER,
            Part::Routing => NETLINK_ROUTE,
        };
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            let options = SockRef::from(&socket);
            options.set_read_timeout(Some(PATIENCE))?;
            // A full set of rules is larger than the usual buffer of some systems.
            let _ = options.set_send_buffer_size(LARGEST_ANSWER);
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self { socket, part, what }),
            Err(error) => Err(refused(part, what, error)),
        }
    }

    pub fn send(&self, bytes: &[u8]) -> Result<(), InterceptError> {
        match self.socket.send(bytes, 0) {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(self.part, self.what, error)),
        }
    }

    pub fn receive(&self) -> Result<Answers, InterceptError> {
        let mut bytes = Vec::with_capacity(LARGEST_ANSWER);
        loop {
            match self.socket.recv(&mut bytes, 0) {
                Ok(_) => return Ok(Answers { bytes, at: 0 }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused(self.part, self.what, error)),
            }
        }
    }

    /// Waits until the request with this number is acknowledged, or any request is refused.
    pub fn acknowledged(&self, number: u32) -> Result<(), InterceptError> {
        loop {
            let mut answers = self.receive()?;
            while let Some((answer, _)) = answers.next(self.what)? {
                if let Some(error) = answer.refusal() {
                    return Err(refused(self.part, self.what, error));
                }
                if answer.number == number {
                    return Ok(());
                }
            }
        }
    }

    /// The payloads of a dump, nftables only.
    pub fn dump(&self) -> Result<Vec<NetfilterMessage>, InterceptError> {
        let mut dump = Vec::new();
        loop {
            let mut answers = self.receive()?;
            while let Some((answer, bytes)) = answers.next(self.what)? {
                if let Some(error) = answer.refusal() {
                    return Err(refused(self.part, self.what, error));
                }
                let unreadable = |error: netlink_packet_core::DecodeError| InterceptError::Answer {
                    what: self.what,
                    reason: error.to_string(),
                };
                match NetlinkMessage::deserialize(bytes).map_err(unreadable)?.payload {
                    NetlinkPayload::InnerMessage(message) => dump.push(message),
                    NetlinkPayload::Done(_) => return Ok(dump),
                    _ => {}
                }
            }
        }
    }
}

/// What every answer says.
pub(super) struct Answer {
    kind: u16,
    /// Of the request that is answered.
    pub number: u32,
    status: i32,
}

impl Answer {
    const ERROR: u16 = 2;

    /// What the kernel refused with; an acknowledgement is an error without a number.
    fn refusal(&self) -> Option<io::Error> {
        (self.kind == Self::ERROR && self.status != 0).then(|| io::Error::from_raw_os_error(-self.status))
    }
}

impl Answers {
    pub fn next(&mut self, what: &'static str) -> Result<Option<(Answer, &[u8])>, InterceptError> {
        let rest = &self.bytes[self.at..];
        if rest.len() < HEADER {
            return Ok(None);
        }
        let unreadable = |reason: String| InterceptError::Answer { what, reason };
        let buffer = NetlinkBuffer::new_checked(rest).map_err(|error| unreadable(error.to_string()))?;
        let length = buffer.length() as usize;
        let (kind, number) = (buffer.message_type(), buffer.sequence_number());
        let message = &rest[..length];
        let status = message
            .get(HEADER..HEADER + 4)
            .and_then(|status| status.try_into().ok());
        let status = status.map_or(0, i32::from_ne_bytes);
        self.at = (self.at + length.next_multiple_of(4)).min(self.bytes.len());
        Ok(Some((Answer { kind, number, status }, message)))
    }
}

fn refused(part: Part, what: &'static str, source: io::Error) -> InterceptError {
    use rustix::io::Errno;
    match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::ACCESS) => InterceptError::NotPermitted(what),
        Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::INVAL)
            if part == Part::Netfilter =>
        {
            InterceptError::Unsupported { what, source }
        }
        _ => InterceptError::Kernel { what, source },
    }
}
