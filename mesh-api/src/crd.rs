//! Policy kinds.
