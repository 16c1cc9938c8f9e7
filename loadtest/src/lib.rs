//! Measures an election agent from outside, as a client: throughput, latency, and what its processes use.

pub mod bench;
pub mod caller;
pub mod floor;
pub mod growth;
pub mod options;
pub mod report;
pub mod run;
pub mod usage;
