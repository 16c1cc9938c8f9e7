//! What the agent asks of Kubernetes.

pub mod client;
