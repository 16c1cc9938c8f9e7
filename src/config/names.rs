//! Resolves variables and keys that are not settings: suggests the intended setting, and recognizes variables of
//! Kubernetes Services.

use std::fmt;

use strsim::osa_distance;

use super::settings;

/// The variable of a setting. Only the constants below exist, so a typo does not compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variable(&'static str);

impl Variable {
    pub(super) const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! variables {
    ($($name:ident)+) => { $(pub(super) const $name: Variable = Variable(stringify!($name));)+ };
}

variables! {
    // listen.rs
    EA_BIND_ADDRESS EA_GRPC_ENABLE EA_GRPC_PORT EA_HTTP_ENABLE EA_HTTP_PORT EA_GRPC_MAX_CONNECTION_IDLE
    EA_GRPC_MAX_CONNECTION_AGE EA_GRPC_MAX_CONNECTION_AGE_GRACE EA_GRPC_MIN_PING_INTERVAL EA_FIRST_BYTE_TIMEOUT
    EA_HEADER_TIMEOUT EA_WORKERS EA_CORS_ORIGINS EA_UI_ENABLE EA_UI_BASE_PATH EA_SHUTDOWN_GRACE
    // tls.rs
    EA_TLS_CERT_FILE EA_TLS_KEY_FILE EA_TLS_CLIENT_CA_FILE EA_TLS_CLIENT_AUTH EA_TLS_HANDSHAKE_TIMEOUT
    // auth.rs
    EA_AUTH_MODES EA_AUTH_PUBLIC EA_AUTH_TOKEN_FILE EA_AUTH_JWT_ISSUER EA_AUTH_JWT_AUDIENCE
    EA_AUTH_JWT_JWKS_FILE EA_AUTH_JWT_JWKS_URL EA_AUTH_JWT_CA_FILE EA_AUTH_JWT_REFRESH EA_AUTH_JWT_LEEWAY
    EA_AUTH_JWT_NAME_CLAIM EA_AUTH_JWT_GROUPS_CLAIM EA_AUTH_KUBERNETES_AUDIENCES EA_AUTH_KUBERNETES_CACHE_TTL
    EA_AUTH_POLICY_DIR
    // redis.rs
    EA_STORE EA_REDIS_MODE EA_REDIS_URLS EA_REDIS_URLS_NEXT EA_REDIS_MASTER EA_REDIS_SENTINEL_USERNAME
    EA_REDIS_SENTINEL_PASSWORD EA_REDIS_PARTITIONS EA_REDIS_PREFIX EA_REDIS_OPERATION_TIMEOUT
    EA_REDIS_TLS_CA_FILE EA_EMBEDDED_PATH EA_RESTART_GUARD EA_ALLOW_EVICTION EA_TOKEN_RETENTION
    // limits.rs
    EA_MAX_TERM EA_REQUEST_TIMEOUT EA_MAX_IN_FLIGHT EA_MAX_CONNECTIONS EA_MAX_CONNECTIONS_PER_PEER
    EA_TRUSTED_PROXIES EA_RATE_LIMIT_PER_SECOND EA_RATE_LIMIT_BURST EA_MAX_HELD_PER_IDENTITY
    EA_MAX_HELD_PER_KIND EA_ALLOW_FORCED_HANDOVER EA_MAX_STREAMS EA_MAX_WAIT EA_PROVISIONAL_TERM
    // kube.rs
    EA_KUBE_ENABLE EA_KUBE_IN_CLUSTER EA_KUBE_CONTEXT EA_KUBE_NAMESPACES EA_KUBE_CACHE_TTL EA_KUBE_MAX_STALENESS
    // telemetry.rs
    EA_ENV EA_LOG_LEVEL EA_METRIC_ENABLE EA_METRIC_REQUEST_DURATION_BUCKETS EA_METRICS_PER_ELECTION
    EA_TRACE_KEYS
}

/// The variable that names the YAML file. It is not a setting, because the file cannot name itself.
pub(super) const CONFIG_FILE: &str = "EA_CONFIG_FILE";

/// Returns all variables that the agent reads, except OpenTelemetry's.
fn variables() -> impl Iterator<Item = &'static str> {
    settings()
        .flat_map(|setting| [Some(setting.variable), setting.alias])
        .flatten()
        .chain([CONFIG_FILE])
}

/// Returns whether a variable may be intended for the agent: it begins with the prefix of settings in any case, or
/// equals a setting except for case and separators.
pub(super) fn is_near(variable: &str) -> bool {
    let begins = variable.get(..2).map(|prefix| prefix.to_ascii_uppercase());
    let goes_on = variable.get(2..).unwrap_or_default();
    begins.as_deref() == Some("EA")
        && (!goes_on.starts_with(|c: char| c.is_ascii_alphanumeric())
            || variables().any(|known| letters(known) == letters(variable)))
}

/// Returns the variable that this one was probably intended to be.
///
/// Tolerates some wrong, missing, doubled or transposed letters. Words may be in another order, and one may be missing.
/// A single word matches if it is the last word of a setting: `EA_URLS`.
pub(super) fn meant(variable: &str) -> Option<&'static str> {
    let given = letters(variable);
    let distance = |known: &str| osa_distance(&given, &letters(known));
    variables()
        .filter(|known| {
            let most = ((letters(known).len() - 2) / 4).clamp(1, 3);
            distance(known) <= most || has_words_of(variable, known)
        })
        .min_by_key(|known| distance(known))
}

/// Returns the key of the file that this one was probably intended to be.
pub(super) fn meant_key(key: &str) -> Option<String> {
    let plain = key.to_ascii_uppercase();
    let plain = plain.strip_prefix("EA_").unwrap_or(&plain);
    let variable = meant(&format!("EA_{plain}")).filter(|variable| *variable != CONFIG_FILE)?;
    Some(super::key(variable))
}

fn letters(name: &str) -> String {
    let plain = name.chars().filter(char::is_ascii_alphanumeric);
    plain.map(|c| c.to_ascii_uppercase()).collect()
}

/// Returns the words after the prefix.
fn words(name: &str) -> Vec<String> {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty()).skip(1);
    words.map(str::to_ascii_uppercase).collect()
}

fn has_words_of(given: &str, known: &str) -> bool {
    let (given, known) = (words(given), words(known));
    match given.as_slice() {
        [] => false,
        [word] => known.last().is_some_and(|last| is_same(word, last)),
        words => {
            known.len() <= words.len() + 1
                && words
                    .iter()
                    .all(|word| known.iter().any(|known| is_same(word, known)))
        }
    }
}

fn is_same(word: &str, known: &str) -> bool {
    let is_long = word.len().min(known.len()) >= 5;
    word.trim_end_matches('S') == known.trim_end_matches('S')
        || is_long && osa_distance(word, known) <= 1
}

/// Returns whether a variable was created for a Service by Kubernetes, or by Docker in the same format: a Service
/// `ea-web` yields `EA_WEB_SERVICE_HOST`, `EA_WEB_PORT=tcp://10.0.0.1:80`, `EA_WEB_PORT_80_TCP_ADDR` and more.
///
/// A Service `ea-http` yields an `EA_HTTP_PORT`. That variable counts as the Service's only if `EA_HTTP_SERVICE_HOST`
/// exists.
pub(super) fn is_service_link(variable: &str, value: &str, exists: impl Fn(&str) -> bool) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    let of_port = variable.strip_suffix("_PORT").filter(|_| is_address);
    if let Some(service) = of_port {
        return !variables().any(|known| known == variable)
            || exists(&format!("{service}_SERVICE_HOST"));
    }
    ["_SERVICE_HOST", "_SERVICE_PORT"]
        .iter()
        .any(|end| variable.ends_with(end))
        || variable.contains("_SERVICE_PORT_")
        || names_a_port(variable)
}

/// Returns whether the name ends like `_PORT_80_TCP` or `_PORT_80_TCP_ADDR`.
fn names_a_port(variable: &str) -> bool {
    let mut words: Vec<_> = variable.split('_').collect();
    if matches!(words.last(), Some(&("PROTO" | "PORT" | "ADDR"))) {
        words.pop();
    }
    match words.as_slice() {
        [.., "PORT", number, "TCP" | "UDP" | "SCTP"] => number.parse::<u16>().is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resembles_a_setting_was_meant_to_be_it() {
        for (given, known) in [
            ("EA_REDIS_URL", "EA_REDIS_URLS"),
            ("EA_REDIS_URLSS", "EA_REDIS_URLS"),
            ("EA_REDIS_ULRS", "EA_REDIS_URLS"),
            ("EA_REIDS_URLS", "EA_REDIS_URLS"),
            ("EA_REDIS_URI", "EA_REDIS_URLS"),
            ("EA_REDIS_URLs", "EA_REDIS_URLS"),
            ("ea_redis_urls", "EA_REDIS_URLS"),
            ("ea_redis_url", "EA_REDIS_URLS"),
            ("EA-REDIS-URLS", "EA_REDIS_URLS"),
            ("EA__REDIS__URLS", "EA_REDIS_URLS"),
            ("EAREDIS_URLS", "EA_REDIS_URLS"),
            ("EA_REDISURLS", "EA_REDIS_URLS"),
            ("EA_URLS_REDIS", "EA_REDIS_URLS"),
            ("EA_URLS", "EA_REDIS_URLS"),
            ("EA_REDIS_URL_NEXT", "EA_REDIS_URLS_NEXT"),
            ("EA_REDIS_NEXT", "EA_REDIS_URLS_NEXT"),
            ("EA_MAXTERM", "EA_MAX_TERM"),
            ("EA_TERM", "EA_MAX_TERM"),
            ("EA_MAX_TERMS", "EA_MAX_TERM"),
            ("EA_STROE", "EA_STORE"),
            ("EA_EMBEDED_PATH", "EA_EMBEDDED_PATH"),
            ("EA_TLS_CERT", "EA_TLS_CERT_FILE"),
            ("EA_JWT_ISSUER", "EA_AUTH_JWT_ISSUER"),
            ("EA_AUTH_MODE", "EA_AUTH_MODES"),
            ("EA_HTTP_PROT", "EA_HTTP_PORT"),
            ("EA_KEY_PREFX", "EA_KEY_PREFIX"),
            ("EA_CONFIGFILE", "EA_CONFIG_FILE"),
            ("EA_ENVS", "EA_ENV"),
            ("EA_LOGLEVEL", "EA_LOG_LEVEL"),
        ] {
            assert!(is_near(given), "{given}");
            assert_eq!(meant(given), Some(known), "{given}");
        }
        assert_eq!(meant_key("redis-url").as_deref(), Some("redis_urls"));
        assert_eq!(meant_key("EA_GRPC_PORT").as_deref(), Some("grpc_port"));
        assert_eq!(meant_key("config_file"), None);
    }

    #[test]
    fn what_resembles_no_setting_was_not() {
        for given in [
            "EA_FOO",
            "EA_VERSION",
            "EA_IMAGE",
            "EA_TEAM",
            "EA_TOKEN",
            "EA_BUILD_NUMBER",
            "EA_DATACENTER",
            "EA_REPLICAS",
            "EA_HOST",
        ] {
            assert_eq!(meant(given), None, "{given}");
        }
        for far in ["EASY", "EARTH_URLS", "HOME", "E", "", "EÄ_X"] {
            assert!(!is_near(far), "{far}");
        }
    }

    #[test]
    fn every_setting_is_nearest_to_itself() {
        for variable in variables() {
            assert_eq!(meant(variable), Some(variable));
            assert!(!is_service_link(variable, "x", |_| true), "{variable}");
        }
    }

    #[test]
    fn variables_that_kubernetes_makes_of_services_are_told_apart() {
        for (variable, value) in [
            ("EA_WEB_SERVICE_HOST", "10.0.0.1"),
            ("EA_WEB_SERVICE_PORT", "80"),
            ("EA_WEB_SERVICE_PORT_HTTP", "80"),
            ("EA_WEB_PORT", "tcp://10.0.0.1:80"),
            ("EA_WEB_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("EA_WEB_PORT_80_TCP_PROTO", "tcp"),
            ("EA_WEB_PORT_80_TCP_PORT", "80"),
            ("EA_WEB_PORT_53_UDP_ADDR", "10.0.0.1"),
            ("EA_REDIS_PORT", "tcp://10.0.0.1:6379"),
            ("EA_PORT", "tcp://10.0.0.1:80"),
            ("EA_SERVICE_HOST", "10.0.0.1"),
        ] {
            assert!(is_service_link(variable, value, |_| false), "{variable}");
        }
        for (variable, value) in [
            ("EA_WEB_PORT", "80"),
            ("EA_HTTP_PORT", "tcp://10.0.0.1:80"),
            ("EA_WEB_PORT_HTTP_TCP", "x"),
            ("EA_REDIS_URL", "redis://h"),
        ] {
            assert!(!is_service_link(variable, value, |_| false), "{variable}");
        }
        let service_host = |name: &str| name == "EA_HTTP_SERVICE_HOST";
        assert!(is_service_link(
            "EA_HTTP_PORT",
            "tcp://10.0.0.1:80",
            service_host
        ));
    }
}
