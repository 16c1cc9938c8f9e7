//! Tracing, configured by the standard variables of OpenTelemetry SDKs (`OTEL_*`); docs/TRACES.md lists them.
//!
//! These are not settings of the agent and have neither flags nor keys in the file. An empty variable counts as unset.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path, time::Duration};

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::values::Reader;
use crate::{
    telemetry::trace::{
        Batches, Destination, Protocol, Settings,
        sampler::{Root, Sampler},
    },
    tls,
};

/// Default service name.
const SERVICE: &str = "election-agent";
/// Path of traces below `OTEL_EXPORTER_OTLP_ENDPOINT` over HTTP.
const PATH: &str = "v1/traces";

/// Reads the variables. Returns `Some(None)` if tracing is off, `None` if there are mistakes.
pub(super) fn read(reader: &mut Reader<'_>, keys: Option<bool>) -> Option<Option<Settings>> {
    let disabled = boolean(reader, "OTEL_SDK_DISABLED");
    let exports = exports(reader);
    // All variables are read, including those not needed, so that all mistakes are reported.
    let destination = destination(reader);
    let resource = resource(reader);
    let sampler = sampler(reader);
    let batches = batches(reader);
    let continues = propagators(reader);
    let settings = Settings {
        destination: destination?,
        resource: resource?,
        sampler: sampler?,
        batches: batches?,
        continues: continues?,
        keys: keys?,
    };
    Some((exports? && !disabled?).then_some(settings))
}

/// Returns a variable of the exporter with its name: the one for traces if it is set, else the one for all signals.
fn exporter<'a>(reader: &Reader<'a>, what: &str) -> Option<(String, &'a str)> {
    [
        format!("OTEL_EXPORTER_OTLP_TRACES_{what}"),
        format!("OTEL_EXPORTER_OTLP_{what}"),
    ]
    .into_iter()
    .find_map(|name| reader.otel(&name).map(|value| (name, value)))
}

/// Returns whether traces are exported: if the exporter is named, or if an endpoint is given.
fn exports(reader: &mut Reader<'_>) -> Option<bool> {
    let endpoint = exporter(reader, "ENDPOINT").is_some();
    match reader.otel("OTEL_TRACES_EXPORTER") {
        None => Some(endpoint),
        Some("otlp") => Some(true),
        Some("none") => Some(false),
        Some(other) => {
            let what = format!("\"{other}\" is not valid: give otlp or none");
            reader.mistake("OTEL_TRACES_EXPORTER", what);
            None
        }
    }
}

fn destination(reader: &mut Reader<'_>) -> Option<Destination> {
    let protocol = match exporter(reader, "PROTOCOL") {
        None | Some((_, "http/protobuf")) => Some(Protocol::Http),
        Some((_, "grpc")) => Some(Protocol::Grpc),
        Some((name, other)) => {
            let what = format!("\"{other}\" is not valid: give grpc or http/protobuf");
            reader.mistake(&name, what);
            None
        }
    };
    let endpoint = endpoint(reader, protocol.unwrap_or(Protocol::Http));
    let headers = match exporter(reader, "HEADERS") {
        None => Some(BTreeMap::new()),
        // The values may be credentials and are not shown.
        Some((name, value)) => match pairs(value).and_then(|pairs| headers(&pairs)) {
            Some(headers) => Some(headers),
            None => {
                reader.mistake(
                    &name,
                    "it is not valid: give names and values of headers, such as key=value,other=value, values \
                     percent-encoded",
                );
                None
            }
        },
    };
    let timeout = match exporter(reader, "TIMEOUT") {
        None => Some(Duration::from_secs(10)),
        Some((name, _)) => milliseconds(reader, &name, 0, 1..=600_000),
    };
    let gzip = match exporter(reader, "COMPRESSION") {
        None | Some((_, "none")) => Some(false),
        Some((_, "gzip")) => Some(true),
        Some((name, other)) => {
            reader.mistake(
                &name,
                format!("\"{other}\" is not valid: give gzip or none"),
            );
            None
        }
    };
    let authorities = match exporter(reader, "CERTIFICATE") {
        None => Some(None),
        Some((name, path)) => match authorities(path) {
            Ok(pem) => Some(Some(pem)),
            Err(what) => {
                reader.mistake(&name, what);
                None
            }
        },
    };
    Some(Destination {
        protocol: protocol?,
        endpoint: endpoint?,
        headers: headers?,
        timeout: timeout?,
        gzip: gzip?,
        authorities: authorities?,
    })
}

/// Returns the endpoint: the variable for traces unchanged, or the one for all signals followed by the path of traces.
fn endpoint(reader: &mut Reader<'_>, protocol: Protocol) -> Option<Url> {
    let default = match protocol {
        Protocol::Grpc => "http://localhost:4317",
        Protocol::Http => "http://localhost:4318",
    };
    let (name, value) = exporter(reader, "ENDPOINT")
        .unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), default));
    let url = Url::parse(value).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(mut url) = url else {
        reader.mistake(
            &name,
            format!("it is not valid: give an http:// or https:// URL, such as {default}"),
        );
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        reader.mistake(
            &name,
            "it has a user or password: give credentials by OTEL_EXPORTER_OTLP_HEADERS",
        );
        return None;
    }
    if protocol == Protocol::Http && name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
        let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Some(url)
}

fn authorities(path: &str) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    tls::certificates(Path::new(path), &pem).map(|_| pem)
}

fn resource(reader: &mut Reader<'_>) -> Option<BTreeMap<String, String>> {
    let attributes = reader.otel("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let Some(mut attributes) = pairs(attributes) else {
        reader.mistake(
            "OTEL_RESOURCE_ATTRIBUTES",
            format!(
                "\"{attributes}\" is not valid: give key=value,other=value, values percent-encoded"
            ),
        );
        return None;
    };
    if let Some(name) = reader.otel("OTEL_SERVICE_NAME") {
        attributes.insert("service.name".to_owned(), name.to_owned());
    }
    for (key, default) in [
        ("service.name", SERVICE),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ] {
        let entry = attributes.entry(key.to_owned());
        entry.or_insert_with(|| default.to_owned());
    }
    Some(attributes)
}

fn sampler(reader: &mut Reader<'_>) -> Option<Sampler> {
    let name = reader
        .otel("OTEL_TRACES_SAMPLER")
        .unwrap_or("parentbased_always_on");
    let (parent_based, root) = match name.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, name),
    };
    let root = match root {
        "always_on" => Root::Always,
        "always_off" => Root::Never,
        "traceidratio" => {
            let raw = reader.otel("OTEL_TRACES_SAMPLER_ARG").unwrap_or("1");
            let ratio = raw.parse().ok();
            let Some(ratio) = ratio.filter(|ratio| (0.0..=1.0).contains(ratio)) else {
                reader.mistake(
                    "OTEL_TRACES_SAMPLER_ARG",
                    format!("\"{raw}\" is not valid: give a ratio from 0 to 1, such as 0.01"),
                );
                return None;
            };
            Root::ratio(ratio)
        }
        _ => {
            reader.mistake(
                "OTEL_TRACES_SAMPLER",
                format!(
                    "\"{name}\" is not valid: give always_on, always_off, traceidratio, or one of these with \
                     parentbased_ before it"
                ),
            );
            return None;
        }
    };
    Some(Sampler { parent_based, root })
}

fn batches(reader: &mut Reader<'_>) -> Option<Batches> {
    let delay = milliseconds(reader, "OTEL_BSP_SCHEDULE_DELAY", 5_000, 1..=600_000);
    let timeout = milliseconds(reader, "OTEL_BSP_EXPORT_TIMEOUT", 30_000, 1..=600_000);
    let queue = number(reader, "OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1..=1_000_000);
    let most = number(reader, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1..=1_000_000);
    let queue = usize::try_from(queue?).ok()?;
    let most = usize::try_from(most?).ok()?;
    if most > queue && reader.otel("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_some() {
        reader.mistake(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            format!("{most} spans do not fit into a queue of {queue}: give at most that, or raise OTEL_BSP_MAX_QUEUE_SIZE"),
        );
        return None;
    }
    Some(Batches {
        delay: delay?,
        timeout: timeout?,
        queue,
        most: most.min(queue),
    })
}

/// Returns whether traces of callers are continued. Accepts baggage and ignores it.
fn propagators(reader: &mut Reader<'_>) -> Option<bool> {
    let raw = reader
        .otel("OTEL_PROPAGATORS")
        .unwrap_or("tracecontext,baggage");
    let names: Vec<_> = raw.split(',').map(str::trim).collect();
    let known = |name: &&str| matches!(*name, "tracecontext" | "baggage" | "none");
    if !names.iter().all(known) {
        reader.mistake(
            "OTEL_PROPAGATORS",
            format!("\"{raw}\" is not valid: give tracecontext, baggage or both, comma separated, or none"),
        );
        return None;
    }
    Some(names.contains(&"tracecontext"))
}

fn boolean(reader: &mut Reader<'_>, name: &str) -> Option<bool> {
    let raw = reader.otel(name).unwrap_or("false");
    if raw.eq_ignore_ascii_case("true") {
        return Some(true);
    }
    if !raw.eq_ignore_ascii_case("false") {
        reader.mistake(name, format!("\"{raw}\" is not valid: give true or false"));
        return None;
    }
    Some(false)
}

fn milliseconds(
    reader: &mut Reader<'_>,
    name: &str,
    default: u64,
    range: RangeInclusive<u64>,
) -> Option<Duration> {
    number(reader, name, default, range).map(Duration::from_millis)
}

fn number(
    reader: &mut Reader<'_>,
    name: &str,
    default: u64,
    range: RangeInclusive<u64>,
) -> Option<u64> {
    let Some(raw) = reader.otel(name) else {
        return Some(default);
    };
    let number = raw.parse().ok().filter(|number| range.contains(number));
    if number.is_none() {
        let unit = match name.ends_with("SIZE") {
            true => "spans",
            false => "milliseconds",
        };
        reader.mistake(
            name,
            format!(
                "\"{raw}\" is not valid: give a number of {unit} from {} to {}",
                range.start(),
                range.end()
            ),
        );
    }
    number
}

/// Parses `key=value,other=value` with percent-encoded values.
fn pairs(text: &str) -> Option<BTreeMap<String, String>> {
    let entries = text.split(',').map(str::trim);
    let entries = entries.filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (key, value) = entry.split_once('=')?;
            let key = key.trim();
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
        })
        .collect()
}

/// Converts pairs to headers, if they are valid headers.
fn headers(pairs: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    pairs
        .iter()
        .map(|(name, value)| {
            let name = name.parse::<HeaderName>().ok()?;
            let value = HeaderValue::from_str(value).ok()?;
            Some((name.to_string(), value.to_str().ok()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Values};

    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let env = env.iter().map(|(name, value)| (name.into(), value.into()));
        let values = Values::collect(Vec::new(), None, env).map_err(|found| found.to_string())?;
        let config = Config::of_command(values).map_err(|found| found.to_string())?;
        Ok(config.telemetry.traces)
    }

    fn on(env: &[(&str, &str)]) -> Settings {
        let all = [&[("OTEL_TRACES_EXPORTER", "otlp")], env].concat();
        read(&all).expect("valid").expect("on")
    }

    #[test]
    fn requests_are_traced_only_when_it_is_said_where_to_or_that_they_are() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        let traces = (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://collector:4317",
        );
        for (is_on, env) in [
            (false, &[][..]),
            (
                false,
                &[
                    ("OTEL_SERVICE_NAME", "x"),
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
                ],
            ),
            (true, &[endpoint]),
            (true, &[traces]),
            (true, &[("OTEL_TRACES_EXPORTER", "otlp")]),
            (false, &[endpoint, ("OTEL_TRACES_EXPORTER", "none")]),
            (false, &[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]),
        ] {
            assert_eq!(read(env).expect("valid").is_some(), is_on, "{env:?}");
        }
    }

    #[test]
    fn mistakes_are_told_at_once_and_headers_are_not_shown() {
        let wrong = [
            ("OTEL_SDK_DISABLED", "perhaps"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
            ("OTEL_RESOURCE_ATTRIBUTES", "alone"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_PROPAGATORS", "b3"),
            ("EA_TRACE_KEYS", "perhaps"),
            ("EA_GRPC_PORT", "65536"),
        ];
        let found = read(&wrong).expect_err("refused");
        for (name, _) in wrong {
            assert!(found.contains(name), "{name} is not in: {found}");
        }
        assert!(!found.contains("s3cret"), "{found}");
        for (env, named) in [
            (
                &[
                    ("OTEL_TRACES_SAMPLER", "traceidratio"),
                    ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
                ][..],
                "OTEL_TRACES_SAMPLER_ARG",
            ),
            (
                &[
                    ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
                    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "11"),
                ],
                "OTEL_BSP_MAX_QUEUE_SIZE",
            ),
            (
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:s3cret@h:1")],
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
        ] {
            let found = read(env).expect_err("refused");
            assert!(found.contains(named), "{named} is not in: {found}");
            assert!(!found.contains("s3cret"), "{found}");
        }
    }

    #[test]
    fn spans_over_http_go_to_their_path_unless_the_endpoint_is_for_traces_alone() {
        let all = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        for (env, url) in [
            (&[][..], "http://localhost:4318/v1/traces"),
            (&[(all, "https://c/base/")], "https://c/base/v1/traces"),
            (&[(all, "http://c:1"), (traces, "http://d/x")], "http://d/x"),
            (&[grpc], "http://localhost:4317/"),
            (&[grpc, (all, "http://c:1")], "http://c:1/"),
        ] {
            assert_eq!(on(env).destination.endpoint.as_str(), url, "{env:?}");
        }
    }

    #[test]
    fn what_is_for_traces_alone_wins_and_values_are_percent_encoded() {
        let settings = on(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x=1"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "Authorization=Bearer%20t, y=a%2Cb",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,zone=a%20b"),
            ("OTEL_SERVICE_NAME", "mine"),
        ]);
        let headers = settings.destination.headers;
        assert_eq!(headers["authorization"], "Bearer t");
        assert_eq!(headers["y"], "a,b");
        assert_eq!(headers.len(), 2);
        assert_eq!(settings.destination.timeout.as_millis(), 1_500);
        assert_eq!(settings.resource["service.name"], "mine");
        assert_eq!(settings.resource["zone"], "a b");
    }
}
