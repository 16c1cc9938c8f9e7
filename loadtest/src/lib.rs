//! Measures an election agent from outside, as a client: throughput, latency, and what its processes use.

pub mod caller;
pub mod floor;
pub mod options;
pub mod report;
pub mod run;
pub mod usage;
