//! Response flags: why a request or connection went as it did, in the letters that Envoy and Istio print.
//!
//! A small bit set that is copied along with a request. Its text is what the access log and the label `response_flags`
//! show; the order of the letters is Envoy's.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of response flags; empty is written `-`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($name:ident = $bit:literal, $doc:literal;)*) => {
        impl ResponseFlags {
            $(
                #[doc = $doc]
                pub const $name: Self = Self(1 << $bit);
            )*
        }

        /// Bit order is Envoy's order of printing.
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

flags! {
    LH = 0, "Local service failed its health check.";
    UH = 1, "No healthy upstream endpoint.";
    UT = 2, "Upstream request timeout.";
    LR = 3, "Connection reset by this proxy.";
    UR = 4, "Upstream reset the stream.";
    UF = 5, "Upstream connection failure.";
    UC = 6, "Upstream connection terminated.";
    UO = 7, "Upstream overflow: a circuit breaker is open.";
    NR = 8, "No route, or no matching filter chain for a connection.";
    DI = 9, "Delayed by fault injection.";
    FI = 10, "Aborted by fault injection.";
    RL = 11, "Rate limited.";
    UAEX = 12, "Denied by an external authorization service.";
    RLSE = 13, "Refused because the rate limit service failed.";
    DC = 14, "Downstream connection terminated.";
    URX = 15, "Upstream retry limit, or maximum of connection attempts, exceeded.";
    SI = 16, "Stream idle timeout.";
    IH = 17, "Invalid value of a header that the proxy acts on.";
    DPE = 18, "Downstream protocol error.";
    UMSDR = 19, "Upstream reached its maximum stream duration.";
    RFCF = 20, "Response from a cache.";
    NFCF = 21, "No filter configuration.";
    DT = 22, "Connection or request exceeded its maximum duration.";
    UPE = 23, "Upstream protocol error.";
    NC = 24, "No such upstream cluster.";
    OM = 25, "Terminated by the overload manager.";
    DF = 26, "DNS resolution failed.";
    DO = 27, "Dropped on overload.";
    DR = 28, "Downstream reset the stream.";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Whether no flag is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bare bits, as part of a lookup key.
    #[must_use]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for ResponseFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.with(other);
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut separator = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                f.write_str(separator)?;
                f.write_str(name)?;
                separator = ",";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_envoys() {
        for (flags, text) in [
            (ResponseFlags::NONE, "-"),
            (ResponseFlags::NR, "NR"),
            (ResponseFlags::URX | ResponseFlags::UF, "UF,URX"),
            (
                ResponseFlags::UAEX | ResponseFlags::DI | ResponseFlags::UH,
                "UH,DI,UAEX",
            ),
            (ResponseFlags::DR | ResponseFlags::LH, "LH,DR"),
        ] {
            assert_eq!(flags.to_string(), text);
        }
    }

    #[test]
    fn every_name_stands_at_its_bit() {
        assert_eq!(NAMES.len(), 29);
        assert_eq!(NAMES[ResponseFlags::NC.bits().trailing_zeros() as usize], "NC");
        assert_eq!(NAMES[ResponseFlags::DR.bits().trailing_zeros() as usize], "DR");
    }
}
