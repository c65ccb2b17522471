//! gRPC's framing, as far as counting messages needs it: each message is a flag, a length of four bytes, and that many
//! bytes (the gRPC protocol over HTTP/2, "Length-Prefixed-Message").
//!
//! Bytes are neither kept nor changed, and pieces may break anywhere. What is not gRPC's framing counts as something, but harms
//! nothing.

/// Bytes before a message: flag and length.
const PREFIX: u8 = 5;

/// Counts the messages of one direction of a call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MessageCounter {
    /// Bytes of the current prefix that have passed.
    prefix: u8,
    length: u32,
    /// Bytes of the current message that are still to come.
    left: u32,
}

impl MessageCounter {
    /// Reads on; gives the number of messages that ended in this piece.
    pub fn feed(&mut self, mut piece: &[u8]) -> u64 {
        let mut ended = 0;
        loop {
            let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
            piece = &piece[skipped..];
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            let Some((byte, rest)) = piece.split_first() else {
                return ended;
            };
            piece = rest;
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.prefix += 1;
            if self.prefix == PREFIX {
                (self.prefix, self.left) = (0, std::mem::take(&mut self.length));
                // Counted when all of its prefix is there: a message may be empty.
                ended += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(bytes.len() + length, 0xff);
        bytes
    }

    #[test]
    fn messages_are_counted_by_their_prefix() {
        let mut counter = MessageCounter::default();
        assert_eq!(counter.feed(&[]), 0);
        assert_eq!(counter.feed(&[0, 0, 0, 0]), 0, "a prefix that is not whole");
        assert_eq!(counter.feed(&[0]), 1, "an empty message");
        assert_eq!(counter.feed(&[message(3), message(300), message(0)].concat()), 3);
        assert_eq!(counter.feed(&message(70_000)[..100]), 1, "the rest is to come");
        assert_eq!(counter.feed(&message(70_000)[100..]), 0);
        assert_eq!(counter.feed(&message(1)), 1);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(lengths in prop::collection::vec(0_usize..600, 0..20), cuts in prop::collection::vec(1_usize..40, 1..20)) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut counter = MessageCounter::default();
            let (mut counted, mut rest) = (0, &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                counted += counter.feed(piece);
                rest = left;
            }
            prop_assert_eq!(counted, lengths.len() as u64);
        }

        #[test]
        fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            MessageCounter::default().feed(&bytes);
        }
    }
}
