//! Injected faults.

use std::time::Duration;

use mesh_api::model::{Abort, Fault};

/// Two numbers drawn evenly from `0..1_000_000`, one for each kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultDraws {
    /// Decides on the delay.
    pub delay: u32,
    /// Decides on the abort.
    pub abort: u32,
}

/// What happens to one request. The delay comes first; delay and abort are independent of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultDecision {
    /// Wait so long before going on (flag `DI`).
    pub delay: Option<Duration>,
    /// Then answer like this instead of forwarding (flag `FI`).
    pub abort: Option<Abort>,
}

/// Decides on the faults of one request.
#[must_use]
pub fn draw_fault(fault: &Fault, draws: FaultDraws) -> FaultDecision {
    FaultDecision {
        delay: fault
            .delay
            .and_then(|(share, delay)| share.includes(draws.delay).then_some(delay)),
        abort: fault
            .abort
            .and_then(|(share, abort)| share.includes(draws.abort).then_some(abort)),
    }
}
