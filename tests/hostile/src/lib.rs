//! Hostile clients of every kind, for whoever presses on a broker: `make hostile` and `make chaos`.

pub mod attacks;
