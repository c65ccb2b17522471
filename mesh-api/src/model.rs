//! The compiled, proxy-facing model.
