//! Probes an agent over HTTP, for containers whose engine can run nothing but the agent's binary.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::Client;
use url::Url;

use crate::{causes, config::Config};

/// Timeout of a probe.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A probe of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The URL to request; [`None`] for the agent on this host with the same configuration.
    pub url: Option<Url>,
    /// Whether to probe for liveness instead of readiness.
    pub live: bool,
}

/// Parses the argument of `--url`.
///
/// # Errors
/// The text states what is wrong with it.
pub fn parse_url(text: &str) -> Result<Url, String> {
    const EXAMPLE: &str = "give one such as http://10.0.0.7:8080/readyz";
    let wrong = |what: &str| format!("{what}: {EXAMPLE}");
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        Ok(url) if text.contains("://") => Err(wrong(&format!(
            "the agent is probed over http or https, not {}",
            url.scheme()
        ))),
        // `localhost:8080` parses as the scheme `localhost`.
        Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
            Err(wrong("it begins neither with http:// nor with https://"))
        }
        Err(error) => Err(wrong(&error.to_string())),
    }
}

impl Probe {
    /// Sends the probe.
    ///
    /// # Errors
    /// The text states the agent's reply, or why there was none.
    pub async fn ask(&self, config: &Config) -> Result<(), String> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => self.own_url(config)?,
        };
        let client = Client::builder()
            .timeout(TIMEOUT)
            // A proxy would reply itself, or look for this host in its own network.
            .no_proxy()
            // The probe discloses nothing, and an attacker able to impersonate the agent on this host could also stop
            // it.
            .tls_danger_accept_invalid_certs(self.url.is_none())
            .build()
            .map_err(|error| causes(&error))?;
        let failed = |error: reqwest::Error| format!("{url} does not answer: {}", causes(&error));
        let answer = client.get(url.clone()).send().await.map_err(failed)?;
        let status = answer.status();
        let body = answer.text().await.map_err(failed)?;
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("{url} answers {status}: {}", body.trim())),
        }
    }

    fn own_url(&self, config: &Config) -> Result<Url, String> {
        let listen = &config.listen;
        if listen.http_port == 0 {
            return Err("EA_HTTP_PORT is 0, any free one: name the agent with --url".to_owned());
        }
        let address = match listen.address {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        let scheme = if config.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let path = if self.live { "livez" } else { "readyz" };
        let address = SocketAddr::new(address, listen.http_port);
        let url = format!("{scheme}://{address}/{path}");
        Url::parse(&url).map_err(|error| format!("{url}: {error}"))
    }
}
