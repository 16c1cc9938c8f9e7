//! Permits web pages of other origins to call the agent, if configured (`EA_CORS_ORIGINS`).
//!
//! The layer answers preflight requests. It adds the CORS headers to every reply, including errors, so that the browser
//! gives the page access to the reply's headers: above all `grpc-status`, `grpc-message` and `grpc-status-details-bin`,
//! which gRPC-Web clients read from the headers of a refusal. The layer refuses no request; the browser enforces the
//! rules. The agent uses no cookies, so CORS credentials are not allowed.

use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use url::Url;

/// How long a browser may cache the reply to a preflight request.
const REMEMBERED: std::time::Duration = std::time::Duration::from_secs(3600);

/// Headers that a page may read besides the safelisted ones.
const EXPOSED: [&str; 9] = [
    "etag",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-retry-pushback-ms",
    "retry-after",
    "x-election-agent-cache-age",
    "x-election-agent-code",
    "x-request-id",
];

/// The origins whose pages may call the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Only the agent's own origin.
    None,
    /// Any origin.
    Any,
    /// The listed origins.
    These(Vec<HeaderValue>),
}

impl Origins {
    /// Parses a comma-separated list, or `*`.
    ///
    /// # Errors
    /// The text names the entry that is not an origin, and shows a valid one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries: Vec<_> = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .collect();
        match entries[..] {
            [] if text.is_empty() => Ok(Self::None),
            [] => Err("it holds no origin: give one, or leave it out".to_owned()),
            ["*"] => Ok(Self::Any),
            _ => entries
                .into_iter()
                .map(origin)
                .collect::<Result<_, _>>()
                .map(Self::These),
        }
    }

    /// Returns the layer, if other origins are permitted.
    #[must_use]
    pub fn layer(&self) -> Option<CorsLayer> {
        let origins = match self {
            Self::None => return None,
            Self::Any => AllowOrigin::any(),
            Self::These(origins) => AllowOrigin::list(origins.clone()),
        };
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([
                Method::GET,
                Method::POST,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
            ])
            // Any header is accepted: headers alone grant no access.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED.map(HeaderName::from_static))
            .max_age(REMEMBERED);
        Some(layer)
    }
}

fn origin(entry: &str) -> Result<HeaderValue, String> {
    let wrong = || {
        format!(
            "{entry:?} is no origin: write https://host or https://host:port, without a path, or * alone for all"
        )
    };
    let url = Url::parse(entry).map_err(|_| wrong())?;
    let origin = url.origin().ascii_serialization();
    // The entry must be spelled as a browser sends it, otherwise it never matches.
    let is_origin = matches!(url.scheme(), "http" | "https") && origin == entry;
    let value = HeaderValue::try_from(origin).map_err(|_| wrong())?;
    is_origin.then_some(value).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        assert_eq!(Origins::parse(""), Ok(Origins::None));
        assert_eq!(Origins::parse("*"), Ok(Origins::Any));
        let two = Origins::parse("https://a.example, http://localhost:3000");
        let expected = ["https://a.example", "http://localhost:3000"];
        assert_eq!(
            two,
            Ok(Origins::These(
                expected.map(HeaderValue::from_static).to_vec()
            ))
        );
        for wrong in [
            ",",
            "a.example",
            "https://a.example/",
            "https://a.example/path",
            "https://A.example",
            "https://a.example:443",
            "ftp://a.example",
            "null",
            "*, https://a.example",
        ] {
            let error = Origins::parse(wrong).expect_err(wrong);
            assert!(error.contains("origin"), "{error}");
        }
    }
}
