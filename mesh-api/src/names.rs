//! Host names and references to policy objects.
