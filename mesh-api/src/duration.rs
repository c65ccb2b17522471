//! Durations as Istio's API takes them.
