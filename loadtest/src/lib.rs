//! Measures an election agent as a client: throughput, latency, and the resources of its processes.

pub mod bench;
pub mod caller;
pub mod floor;
pub mod growth;
pub mod options;
pub mod push;
pub mod report;
pub mod run;
pub mod usage;
