//! Addresses and ports, and lifetimes of connections.

use std::{net::IpAddr, num::NonZeroUsize, thread::available_parallelism, time::Duration};

use super::names::{
    EA_BIND_ADDRESS, EA_CORS_ORIGINS, EA_FIRST_BYTE_TIMEOUT, EA_GRPC_ENABLE,
    EA_GRPC_MAX_CONNECTION_AGE, EA_GRPC_MAX_CONNECTION_AGE_GRACE, EA_GRPC_MAX_CONNECTION_IDLE,
    EA_GRPC_MIN_PING_INTERVAL, EA_GRPC_PORT, EA_HEADER_TIMEOUT, EA_HTTP_ENABLE, EA_HTTP_PORT,
    EA_SHUTDOWN_GRACE, EA_UI_BASE_PATH, EA_UI_ENABLE, EA_WORKERS,
};
use super::{Setting, list_setting, setting, values::Reader};
use crate::{
    layers::cors::Origins,
    listener::{Conduct, Lifetime},
    transport::rest::dashboard::Dashboard,
};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        EA_BIND_ADDRESS,
        "0.0.0.0",
        "IP address that both ports listen on; `::` for IPv6 and, where the system maps it, IPv4",
    ),
    setting(
        EA_GRPC_ENABLE,
        "true",
        "serve elections over gRPC and gRPC-Web; health and reflection stay",
    ),
    setting(
        EA_GRPC_PORT,
        "443",
        "port for gRPC clients; both ports serve everything, equal numbers are one listener, 0 is any free port",
    ),
    setting(
        EA_HTTP_ENABLE,
        "true",
        "serve elections over REST, with the OpenAPI document and Swagger UI; probes and metrics stay",
    ),
    setting(EA_HTTP_PORT, "80", "port for HTTP clients; as above"),
    setting(
        EA_GRPC_MAX_CONNECTION_IDLE,
        "30s",
        "a connection without requests for this long is closed (GOAWAY); 0s: never",
    ),
    setting(
        EA_GRPC_MAX_CONNECTION_AGE,
        "300s",
        "a connection of this age, ±10 %, is closed (GOAWAY), so that clients spread over agents; 0s: never",
    ),
    setting(
        EA_GRPC_MAX_CONNECTION_AGE_GRACE,
        "30s",
        "how long the requests of a connection past its age may still take",
    ),
    setting(
        EA_GRPC_MIN_PING_INTERVAL,
        "10s",
        "HTTP/2 PINGs that come sooner than 9/10 of it after the one before, three of them without an answer of the agent's in between, close the connection (GOAWAY, too_many_pings) (up to 1h); 0s: no limit",
    ),
    setting(
        EA_FIRST_BYTE_TIMEOUT,
        "10s",
        "how long a client may take to send the first byte, after the TLS handshake if there is one (100ms to 1m)",
    ),
    setting(
        EA_HEADER_TIMEOUT,
        "10s",
        "how long a client may take from the first byte of a request to the end of its headers (100ms to 1m)",
    ),
    setting(
        EA_WORKERS,
        "0",
        "how many threads serve connections (up to 1024), each of which, and one more, needs a connection of every Redis server's `maxclients`; 0: one for every core that the process may use",
    ),
    list_setting(
        EA_CORS_ORIGINS,
        "",
        "web origins whose pages may call the agent, comma separated, each `https://host` or `https://host:port`; `*`: all; none: pages of the agent's own origin only",
    ),
    setting(
        EA_UI_ENABLE,
        "true",
        "serve the dashboard at `/ui/`; it needs EA_GRPC_ENABLE",
    ),
    setting(
        EA_UI_BASE_PATH,
        "",
        "the path at which a proxy serves the agent, such as `/election-agent`, if not at its root: `/` leads browsers to the dashboard below it; the proxy removes it from requests",
    ),
    setting(
        EA_SHUTDOWN_GRACE,
        "30s",
        "how long requests under way may still take after SIGTERM or SIGINT",
    ),
];

/// Addresses and ports, and lifetimes of connections.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The IP address of both ports.
    pub address: IpAddr,
    /// Whether elections are served over gRPC.
    pub grpc: bool,
    /// The port named for gRPC. Both ports serve the same service.
    pub grpc_port: u16,
    /// Whether elections are served over REST.
    pub http: bool,
    /// The port named for HTTP. Both ports serve the same service.
    pub http_port: u16,
    /// Lifetimes of connections.
    pub lifetime: Lifetime,
    /// The limits that clients must keep.
    pub conduct: Conduct,
    /// Number of threads that serve connections.
    pub workers: NonZeroUsize,
    /// The origins whose pages may call the agent.
    pub cors: Origins,
    /// How the dashboard is served.
    pub dashboard: Dashboard,
    /// How long requests may take after a signal to stop.
    pub shutdown_grace: Duration,
}

/// Returns the number of cores that the process may use; in a container, its quota.
fn cores() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Validates the path at which a proxy serves the agent.
fn base_path(text: &str) -> Result<String, String> {
    let segment = |segment: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        !segment.is_empty() && ![".", ".."].contains(&segment) && segment.bytes().all(plain)
    };
    let path = text.strip_suffix('/').unwrap_or(text);
    let valid = match path.strip_prefix('/') {
        Some(segments) => segments.split('/').all(segment),
        None => path.is_empty(),
    };
    match valid {
        true => Ok(path.to_owned()),
        false => Err(
            "give a path such as /election-agent, of letters, digits and -._~, or nothing"
                .to_owned(),
        ),
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
/// Minimum time limit for clients; slow networks need at least this.
const MIN_PATIENCE: Duration = Duration::from_millis(100);

impl Listen {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let never = |duration: Duration| (!duration.is_zero()).then_some(duration);
        let address = reader.with(EA_BIND_ADDRESS, |raw| {
            raw.parse()
                .map_err(|_| "give an IP address, such as 127.0.0.1 or ::".to_owned())
        });
        let grpc = reader.bool(EA_GRPC_ENABLE);
        let grpc_port = reader.port(EA_GRPC_PORT);
        let http = reader.bool(EA_HTTP_ENABLE);
        let http_port = reader.port(EA_HTTP_PORT);
        let idle = reader.duration(EA_GRPC_MAX_CONNECTION_IDLE, Duration::ZERO, 24 * HOUR);
        let age = reader.duration(EA_GRPC_MAX_CONNECTION_AGE, Duration::ZERO, 24 * HOUR);
        let age_grace = reader.duration(EA_GRPC_MAX_CONNECTION_AGE_GRACE, Duration::ZERO, HOUR);
        let min_ping_interval = reader.duration(EA_GRPC_MIN_PING_INTERVAL, Duration::ZERO, HOUR);
        let first_byte = reader.duration(EA_FIRST_BYTE_TIMEOUT, MIN_PATIENCE, MINUTE);
        let head = reader.duration(EA_HEADER_TIMEOUT, MIN_PATIENCE, MINUTE);
        let workers = reader.number(EA_WORKERS, 0..=1024);
        let cors = reader.with(EA_CORS_ORIGINS, Origins::parse);
        let ui = reader.bool(EA_UI_ENABLE);
        let base_path = reader.with(EA_UI_BASE_PATH, base_path);
        let shutdown_grace = reader.duration(EA_SHUTDOWN_GRACE, Duration::ZERO, HOUR);
        if (grpc, http) == (Some(false), Some(false)) {
            reader.mistake(
                EA_HTTP_ENABLE,
                "it and EA_GRPC_ENABLE are both false, so nothing would be served: set one to true",
            );
        }
        Some(Self {
            address: address?,
            grpc: grpc?,
            grpc_port: grpc_port?,
            http: http?,
            http_port: http_port?,
            lifetime: Lifetime {
                idle: never(idle?),
                age: never(age?),
                age_grace: age_grace?,
            },
            conduct: Conduct {
                first_byte: first_byte?,
                head: head?,
                min_ping_interval: min_ping_interval?,
            },
            workers: NonZeroUsize::new(workers?).unwrap_or_else(cores),
            cors: cors?,
            dashboard: Dashboard {
                off: match (ui?, grpc?) {
                    (false, _) => {
                        Some("this agent does not serve the dashboard (EA_UI_ENABLE=false)")
                    }
                    (true, false) => Some(
                        "this agent does not serve the dashboard, which needs gRPC-Web (EA_GRPC_ENABLE=false)",
                    ),
                    (true, true) => None,
                },
                base_path: base_path?,
            },
            shutdown_grace: shutdown_grace?,
        })
    }
}
