//! Lets pages of other web origins ask the agent, if they are configured (`EA_CORS_ORIGINS`).
//!
//! Answers preflight requests itself, and adds to every answer, also to errors, what a browser needs to
//! hand it to the page: `grpc-status`, `grpc-message` and `grpc-status-details-bin` above all, which gRPC-Web
//! clients read from the headers of a refusal. Refuses nothing: a browser does, when the headers are not
//! there. No cookies are involved, so credentials are not allowed.

use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use url::Url;

/// How long a browser may remember a preflight's answer.
const REMEMBERED: std::time::Duration = std::time::Duration::from_secs(3600);

/// What a page may read besides what it always may.
const EXPOSED: [&str; 8] = [
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-retry-pushback-ms",
    "retry-after",
    "x-election-agent-cache-age",
    "x-election-agent-code",
    "x-request-id",
];

/// Whose pages may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Only those of the agent's own origin.
    None,
    /// Anybody's.
    Any,
    /// Those of these origins.
    These(Vec<HeaderValue>),
}

impl Origins {
    /// Reads a comma-separated list, or `*`.
    ///
    /// # Errors
    /// Says which entry is no origin, and what one looks like.
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

    /// The layer, if there are other origins to let in.
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
            // Whatever the page sends: headers alone let nobody in.
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
    // As a browser writes it, or it would never match.
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
            let told = Origins::parse(wrong).expect_err(wrong);
            assert!(told.contains("origin"), "{told}");
        }
    }
}
