//! The two formats of `/metrics`, and their selection.
//!
//! The library writes [OpenMetrics 1.0](https://prometheus.io/docs/specs/om/open_metrics_spec/). This module
//! converts that to the [Prometheus text format
//! 0.0.4](https://prometheus.io/docs/instrumenting/exposition_formats/).

use http::{HeaderMap, header};

use super::table::Type;

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// Selects a format by the caller's `Accept` headers: OpenMetrics only if they name it with at least the
    /// quality of text.
    #[must_use]
    pub fn accepted(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut text) = (0.0_f32, 0.0_f32);
        let accepted = headers.get_all(header::ACCEPT).into_iter();
        let accepted = accepted.filter_map(|value| value.to_str().ok());
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters = parts.filter_map(|part| part.split_once('='));
            let (mut quality, mut known) = (1.0_f32, true);
            for (name, value) in parameters {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => known = matches!(value.trim(), "0.0.1" | "1.0.0"),
                    _ => {}
                }
            }
            match media_type.as_str() {
                "application/openmetrics-text" if known => {
                    open_metrics = quality.max(open_metrics);
                }
                "text/plain" => text = quality.max(text),
                _ => {}
            }
        }
        match open_metrics > 0.0 && open_metrics >= text {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The content type of the response.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts metrics to text format. Counters get the names of their samples. Omits what the format does not
/// know: units, exemplars, the end mark.
pub(super) fn text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The help precedes the type, which changes the name in the help.
    let mut help = "";
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            push(&mut text, &[without_exemplar(line)]);
            continue;
        };
        match comment.split_once(' ') {
            Some(("HELP", rest)) => help = rest,
            Some(("TYPE", rest)) => {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
                let suffix = match kind == Type::Counter.name() {
                    true => "_total",
                    false => "",
                };
                let help = help.split_once(' ').map_or("", |(_, help)| help);
                push(&mut text, &["# HELP ", name, suffix, " ", help]);
                push(&mut text, &["# TYPE ", name, suffix, " ", kind]);
            }
            _ => {}
        }
    }
    text
}

fn push(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

/// Cuts the exemplar off a sample. The exemplar begins with the first ` # ` outside of a label value.
fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in sample.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return sample[..at].trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (
                Some("text/html,application/xhtml+xml,*/*;q=0.8"),
                Format::Text,
            ),
            (Some("text/plain"), Format::Text),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (
                Some("Application/OpenMetrics-Text; Version=1.0.0"),
                Format::OpenMetrics,
            ),
            (Some(prometheus), Format::OpenMetrics),
            (
                Some("application/openmetrics-text;version=2.0.0"),
                Format::Text,
            ),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (
                Some("application/openmetrics-text;q=0.3,text/plain;q=0.5"),
                Format::Text,
            ),
            (Some("application/openmetrics-text;q=much"), Format::Text),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().expect("a value"));
            }
            assert_eq!(Format::accepted(&headers), format, "{accept:?}");
        }
        let mut headers = HeaderMap::new();
        for accept in ["text/plain;q=0.1", "application/openmetrics-text"] {
            headers.append(header::ACCEPT, accept.parse().expect("a value"));
        }
        assert_eq!(Format::accepted(&headers), Format::OpenMetrics);
    }

    #[test]
    fn text_names_counters_in_full_and_has_no_exemplars() {
        let open_metrics = r##"# HELP a_requests Help with # and a_requests.
# TYPE a_requests counter
a_requests_total{who="x\" # {",where="#"} 3 # {trace_id="1"} 1 2.5
# HELP a_took_seconds Help.
# TYPE a_took_seconds histogram
# UNIT a_took_seconds seconds
a_took_seconds_sum 0.5
a_took_seconds_bucket{le="+Inf"} 1 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.5 1700000000.123
# HELP a_up Help.
# TYPE a_up gauge
a_up{node="h\\"} 1
# EOF
"##;
        let expected = r##"# HELP a_requests_total Help with # and a_requests.
# TYPE a_requests_total counter
a_requests_total{who="x\" # {",where="#"} 3
# HELP a_took_seconds Help.
# TYPE a_took_seconds histogram
a_took_seconds_sum 0.5
a_took_seconds_bucket{le="+Inf"} 1
# HELP a_up Help.
# TYPE a_up gauge
a_up{node="h\\"} 1
"##;
        assert_eq!(text(open_metrics), expected);
    }
}
