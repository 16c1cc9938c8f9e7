//! Serves the dashboard: the files of `ui/` that `make ui` builds, which the build of the agent embeds. The dashboard
//! is a gRPC-Web client like any other.

use std::io::Read as _;

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use flate2::read::GzDecoder;

use crate::{
    endpoint::{DASHBOARD, DASHBOARD_FILES, DOCUMENTATION},
    status::{Code, Problem},
};

/// The files by path, compressed by gzip. Empty in a build without the dashboard.
type Files = &'static [(&'static str, &'static [u8])];

/// The files that the build has embedded.
const FILES: Files = include!(concat!(env!("OUT_DIR"), "/dashboard.rs"));
/// The page.
const INDEX: &str = "index.html";
/// The directory of the files whose names change with their content.
const HASHED: &str = "assets/";

/// What the page may load and do: its own scripts and styles, and calls to the agent that serves it. Trusted types keep
/// scripts from making HTML of text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'";

/// The page of a build without the dashboard.
const MISSING: &str = "<!doctype html>\n<html lang=\"en\">\n<title>Election Agent</title>\n<h1>Election Agent</h1>\n\
<p>This agent was built without its dashboard. To get it, install Node.js, run <code>make ui</code> in the source tree, \
and build the agent again; the container images have it.</p>\n\
<p><a href=\"swagger-ui/\">API documentation</a> · <a href=\"readyz\">readiness</a> · <a href=\"metrics\">metrics</a></p>\n\
</html>\n";

/// How the dashboard is served.
#[derive(Debug, Clone)]
pub struct Dashboard {
    /// Why it is off, if it is.
    pub off: Option<&'static str>,
    /// The path at which a proxy serves the agent, without a slash at its end.
    pub base_path: String,
}

impl Dashboard {
    /// The routes of the dashboard.
    pub(super) fn router(&self) -> Router {
        if let Some(why) = self.off {
            let off = async move || Problem::new(Code::Disabled, why);
            return Router::new()
                .route(DASHBOARD.trim_end_matches('/'), get(off))
                .route(DASHBOARD, get(off))
                .route(DASHBOARD_FILES, get(off));
        }
        let page = format!("{}{DASHBOARD}", self.base_path);
        Router::new()
            .route(
                DASHBOARD.trim_end_matches('/'),
                get(async move || Redirect::permanent(&page)),
            )
            .route(DASHBOARD, get(async |headers| file(FILES, INDEX, &headers)))
            .route(
                DASHBOARD_FILES,
                get(async |Path(path): Path<String>, headers| file(FILES, &path, &headers)),
            )
    }

    /// Whether it is served, and built in.
    pub(super) fn is_there(&self) -> bool {
        self.off.is_none() && !FILES.is_empty()
    }

    /// Returns what a browser gets at the root: the dashboard, or how to get it, or the documentation.
    pub(super) fn root(&self) -> Response {
        let to = match self.off {
            Some(_) => DOCUMENTATION,
            None if FILES.is_empty() => return html(MISSING).into_response(),
            None => DASHBOARD,
        };
        Redirect::temporary(&format!("{}{to}", self.base_path)).into_response()
    }
}

fn html(text: &'static str) -> impl IntoResponse {
    (
        [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
        ],
        text,
    )
}

/// Returns a file, compressed if the client accepts that.
fn file(files: Files, path: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    if files.is_empty() {
        return Err(Problem::new(
            Code::Disabled,
            "this agent was built without the dashboard: run `make ui` and build it again",
        ));
    }
    let Some((_, content)) = files.iter().find(|(name, _)| *name == path) else {
        return Err(Problem::new(
            Code::NotFound,
            format!("the dashboard has no {path:?}: open {DASHBOARD}"),
        ));
    };
    let media_type = mime_guess::from_path(path).first_raw();
    let media_type = match media_type {
        Some("text/html") => "text/html; charset=utf-8",
        Some("text/javascript") => "text/javascript; charset=utf-8",
        Some("text/css") => "text/css; charset=utf-8",
        Some(other) => other,
        None => "application/octet-stream",
    };
    // A file with a hash in its name never changes; the page names those of its own version.
    let cached = match path.starts_with(HASHED) {
        true => "public, max-age=31536000, immutable",
        false => "no-store",
    };
    let described: [(HeaderName, &str); 6] = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, cached),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if takes_gzip(headers) {
        let compressed = [(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
        return Ok((described, compressed, *content).into_response());
    }
    let mut plain = Vec::new();
    GzDecoder::new(*content)
        .read_to_end(&mut plain)
        .map_err(|error| {
            tracing::error!(path, %error, "an embedded file does not decompress");
            Problem::bug()
        })?;
    Ok((described, plain).into_response())
}

/// Whether the client accepts gzip ([RFC 9110, 12.5.3](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3)).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let given = headers.get_all(header::ACCEPT_ENCODING).iter();
    let codings = given.filter_map(|value| value.to_str().ok());
    let mut codings = codings.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|it| it.eq_ignore_ascii_case("gzip"));
        let refused = parts.any(|part| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0_f32))
        });
        named && !refused
    })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt as _;

    use super::*;

    /// `<p>hello</p>\n` and `hello()`, compressed.
    fn files() -> Files {
        let compressed = |text: &str| {
            let mut compressed =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            std::io::Write::write_all(&mut compressed, text.as_bytes()).expect("written");
            &*compressed.finish().expect("compressed").leak()
        };
        vec![
            (INDEX, compressed("<p>hello</p>\n")),
            ("assets/index-1f0c.js", compressed("hello()")),
        ]
        .leak()
    }

    fn accepting(codings: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT_ENCODING, codings.parse().expect("a value"))])
    }

    #[tokio::test]
    async fn files_are_served_compressed_to_who_takes_that_and_cached_by_their_names() {
        for (path, codings, gzip, cached, media_type) in [
            (
                INDEX,
                "gzip, br",
                true,
                "no-store",
                "text/html; charset=utf-8",
            ),
            (
                INDEX,
                "identity",
                false,
                "no-store",
                "text/html; charset=utf-8",
            ),
            (
                INDEX,
                "br, gzip;q=0",
                false,
                "no-store",
                "text/html; charset=utf-8",
            ),
            (
                "assets/index-1f0c.js",
                "GZIP;q=0.5",
                true,
                "public, max-age=31536000, immutable",
                "text/javascript; charset=utf-8",
            ),
        ] {
            let response = file(files(), path, &accepting(codings)).expect("a file");
            let header = |name: HeaderName| {
                let value = response.headers().get(name);
                value
                    .map(|value| value.to_str().expect("text").to_owned())
                    .unwrap_or_default()
            };
            assert_eq!(
                header(header::CONTENT_ENCODING) == "gzip",
                gzip,
                "{codings}"
            );
            assert_eq!(header(header::CACHE_CONTROL), cached);
            assert_eq!(header(header::CONTENT_TYPE), media_type);
            assert_eq!(header(header::VARY), "accept-encoding");
            assert!(!header(header::CONTENT_SECURITY_POLICY).contains("unsafe"));
            let body = response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            let mut text = String::new();
            match gzip {
                true => {
                    let read = GzDecoder::new(&*body).read_to_string(&mut text);
                    assert!(read.is_ok(), "{read:?}");
                }
                false => text.push_str(std::str::from_utf8(&body).expect("UTF-8")),
            }
            assert!(text.contains("hello"), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_told() {
        let no_headers = HeaderMap::new();
        for path in ["../Cargo.toml", "assets/", "", "/etc/passwd"] {
            let refused = file(files(), path, &no_headers).expect_err("refused");
            assert_eq!(refused.code, Code::NotFound, "{path}");
        }
        let refused = file(&[], INDEX, &no_headers).expect_err("refused");
        assert!(refused.message.contains("make ui"), "{refused}");
        assert_eq!(
            refused.into_response().status(),
            StatusCode::NOT_IMPLEMENTED
        );
    }
}
