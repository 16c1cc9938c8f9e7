//! Configuration: defaults < YAML file (`EA_CONFIG_FILE`) < environment < command-line flags.
//!
//! Every setting is declared once, in the table of its group ([`SETTINGS`] lists all groups): its variable, default and
//! meaning. Flags, file keys, `election-agent help settings`, `election-agent config` and the table in
//! docs/CONFIGURATION.md are generated from it. All mistakes are reported together, each with its variable.

mod auth;
mod credentials;
mod kube;
mod limits;
mod listen;
mod names;
mod otel;
mod redis;
mod telemetry;
mod tls;
mod values;

use std::{fmt, fmt::Write as _};

use sha2::{Digest as _, Sha256};

pub use auth::{Auth, Reviews};
pub use limits::Limits;
pub use listen::Listen;
use names::Variable;
pub use redis::{EMBEDDED_NAMES, REDIS_NAMES, Store, list};
pub use telemetry::{Environment, Telemetry};
pub use tls::Tls;
pub use values::{Ignored, Mistakes, Values};

use crate::transport::agent;
use values::{Reader, Source};

/// The declaration of a setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable: `EA_GRPC_PORT`. The flag is `--grpc-port`, the file's key `grpc_port`.
    pub variable: &'static str,
    /// An alternative variable for the same setting.
    pub alias: Option<&'static str>,
    /// The default value; empty if the setting is off by default.
    pub default: &'static str,
    /// The setting's effect, range and unit.
    pub meaning: &'static str,
    /// Whether the value holds credentials, and in what form.
    pub secret: Secret,
    /// Whether the value is a comma-separated list. The file may also write it as a YAML list.
    pub is_list: bool,
}

/// How a setting's value is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// Unchanged.
    No,
    /// As URLs without their passwords.
    Urls,
    /// Not at all.
    Hidden,
}

const fn setting(variable: Variable, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        variable: variable.name(),
        alias: None,
        default,
        meaning,
        secret: Secret::No,
        is_list: false,
    }
}

/// Declares a setting that is a comma-separated list.
const fn list_setting(variable: Variable, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        is_list: true,
        ..setting(variable, default, meaning)
    }
}

/// Returns the file's key for a variable: without its prefix, in lower case.
fn key(variable: &str) -> String {
    variable.trim_start_matches("EA_").to_ascii_lowercase()
}

impl Setting {
    /// Returns the file's key: the variable without its prefix, in lower case.
    #[must_use]
    pub fn key(&self) -> String {
        key(self.variable)
    }

    /// Returns a value as it is printed, without credentials.
    fn shown(&self, value: &str) -> String {
        match self.secret {
            Secret::No => value.to_owned(),
            Secret::Urls => credentials::hide_credentials(value),
            Secret::Hidden if value.is_empty() => String::new(),
            Secret::Hidden => "***".to_owned(),
        }
    }

    /// Returns the command-line flag, without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key().replace('_', "-")
    }
}

/// All settings by group, with the titles of the groups.
pub const SETTINGS: [(&str, &[Setting]); 7] = [
    ("Ports and connections", listen::SETTINGS),
    ("TLS", tls::SETTINGS),
    ("Callers", auth::SETTINGS),
    ("Where leases are kept", redis::SETTINGS),
    ("Bounds on requests", limits::SETTINGS),
    ("Pods of Kubernetes", kube::SETTINGS),
    ("Logs, metrics and traces", telemetry::SETTINGS),
];

/// Returns all settings.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.into_iter().flat_map(|(_, group)| group)
}

/// The effective configuration, validated.
#[derive(Debug)]
pub struct Config {
    /// Addresses, ports and protocols.
    pub listen: Listen,
    /// TLS on both ports; `None` for plain text.
    pub tls: Option<Tls>,
    /// Authentication and authorization.
    pub auth: Auth,
    /// The lease store.
    pub store: Store,
    /// Limits on requests.
    pub limits: Limits,
    /// The lookup of Kubernetes pods.
    pub kube: crate::kube::Settings,
    /// Logs, metrics and traces.
    pub telemetry: Telemetry,
    values: Values,
}

impl Config {
    /// Validates the values for a serving agent.
    ///
    /// # Errors
    /// All mistakes, each with its variable and what to change.
    pub fn new(values: Values) -> Result<Self, Mistakes> {
        Self::read(values, redis::check_store)
    }

    /// Validates the values for a command that keeps no leases. Such a command does not need the lease store, even in
    /// production.
    ///
    /// # Errors
    /// See [`Config::new`].
    pub fn of_command(values: Values) -> Result<Self, Mistakes> {
        Self::read(values, |_| {})
    }

    fn read(values: Values, check: impl FnOnce(&mut Reader<'_>)) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(&values);
        check(&mut reader);
        let listen = Listen::read(&mut reader);
        let tls = Tls::read(&mut reader);
        let auth = Auth::read(&mut reader);
        let limits = Limits::read(&mut reader);
        let store = Store::read(&mut reader);
        let kube = kube::read(&mut reader);
        let telemetry = Telemetry::read(&mut reader);
        let mistakes = reader.mistakes();
        match (listen, tls, auth, limits, store, kube, telemetry) {
            (
                Some(listen),
                Some(tls),
                Some(auth),
                Some(limits),
                Some(store),
                Some(kube),
                Some(telemetry),
            ) if mistakes.is_empty() => Ok(Self {
                listen,
                tls,
                auth,
                store,
                limits,
                kube,
                telemetry,
                values,
            }),
            _ => Err(mistakes),
        }
    }

    /// Returns a fingerprint that distinguishes configurations: the beginning of a SHA-256 over all settings as they
    /// are printed, regardless of the source of each value. Secrets are hidden first, so the fingerprint reveals
    /// nothing about them.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for setting in settings() {
            let shown = setting.shown(self.values.get(setting.variable).0);
            // A value may contain any separator, so each part is preceded by its length.
            for part in [setting.variable, &shown] {
                hash.update(part.len().to_be_bytes());
                hash.update(part);
            }
        }
        let hash = hash.finalize();
        hash.iter().take(8).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Returns all settings in force, without secrets.
    #[must_use]
    pub fn shown(&self) -> Vec<agent::Setting> {
        let shown = settings().map(|setting| {
            let (value, source) = self.values.get(setting.variable);
            agent::Setting {
                variable: setting.variable,
                value: setting.shown(value),
                source: source.to_string(),
                meaning: setting.meaning,
            }
        });
        shown.collect()
    }

    /// Returns the variables that look like settings but were not read.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        self.values.ignored()
    }
}

/// Formats a configuration file that yields the same configuration, with the source of each value. Defaults and the
/// [fingerprint](Config::fingerprint) are comments, and secrets are hidden.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# fingerprint: {}", self.fingerprint())?;
        for setting in settings() {
            let (value, source) = self.values.get(setting.variable);
            let shown = setting.shown(value);
            let quoted = serde_json::to_string(&shown).map_err(|_| fmt::Error)?;
            let comment = if source == Source::Default { "# " } else { "" };
            writeln!(
                f,
                "{comment}{}: {quoted} # {}, {source}",
                setting.key(),
                setting.variable
            )?;
        }
        Ok(())
    }
}

/// Returns the settings as the Markdown table of docs/CONFIGURATION.md.
#[must_use]
pub fn markdown() -> String {
    let mut table = "| variable | default | meaning |\n|---|---|---|\n".to_owned();
    for setting in settings() {
        let default = match setting.default {
            "" => String::new(),
            default => format!("`{default}`"),
        };
        let alias = setting
            .alias
            .map(|alias| format!(" (or `{alias}`)"))
            .unwrap_or_default();
        let _ = writeln!(
            table,
            "| `{}`{alias} | {default} | {} |",
            setting.variable, setting.meaning
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(env: &[(&str, &str)]) -> Result<Config, Mistakes> {
        let development = [("EA_ENV", "development")];
        let env = development.iter().chain(env);
        let env = env.map(|(name, value)| (name.into(), value.into()));
        Config::new(Values::collect(Vec::new(), None, env)?)
    }

    fn mistakes(env: &[(&str, &str)]) -> String {
        config(env)
            .map(|_| String::new())
            .unwrap_or_else(|mistakes| mistakes.to_string())
    }

    #[test]
    fn the_defaults_are_valid_and_keep_leases_in_process() {
        let config = config(&[]).expect("valid");
        assert_eq!(
            (config.listen.grpc_port, config.listen.http_port),
            (443, 80)
        );
        assert!(config.store.deployments.is_empty());
        assert_eq!(config.limits.max_term.as_secs(), 60);
        assert!(config.kube.enable);
    }

    #[test]
    fn settings_are_declared_once() {
        let mut names: Vec<_> = settings().map(|setting| setting.variable).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn blanks_around_values_are_none_of_them() {
        let config = config(&[
            ("EA_GRPC_PORT", " 8443\n"),
            ("EA_LOG_LEVEL", "info\t"),
            ("EA_REDIS_URLS", " redis://a:1 , redis://b:2 "),
        ]);
        let config = config.expect("valid");
        assert_eq!(config.listen.grpc_port, 8443);
        assert_eq!(config.store.deployments.len(), 2);
        assert_eq!(config.values.get("EA_LOG_LEVEL").0, "info");
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_with_its_variable() {
        let found = mistakes(&[
            ("EA_GRPC_PORT", "65536"),
            ("EA_HTTP_ENABLE", "perhaps"),
            ("EA_MAX_TERM", "10"),
            ("EA_REDIS_MODE", "ring"),
            ("EA_RESTART_GUARD", "maybe"),
            ("EA_ENV", "staging"),
            ("EA_LOG_LEVEL", "chatty"),
            ("EA_METRIC_REQUEST_DURATION_BUCKETS", "0.1,0.01"),
            ("EA_METRICS_PER_ELECTION", "jobs,a/b"),
            ("EA_REDIS_PREFIX", "a{b}"),
            ("EA_KUBE_IN_CLUSTER", "1?"),
            ("EA_REDIS_URLS", "redis://user:s3cret@:port/x"),
            ("EA_TRUSTED_PROXIES", "proxy.example"),
            ("EA_HEADER_TIMEOUT", "61s"),
            ("EA_FIRST_BYTE_TIMEOUT", "99ms"),
            ("EA_GRPC_MIN_PING_INTERVAL", "61m"),
        ]);
        for named in [
            "EA_GRPC_PORT",
            "EA_HTTP_ENABLE",
            "EA_MAX_TERM",
            "EA_REDIS_MODE",
            "EA_RESTART_GUARD",
            "EA_ENV",
            "EA_LOG_LEVEL",
            "EA_METRIC_REQUEST_DURATION_BUCKETS",
            "EA_METRICS_PER_ELECTION",
            "EA_REDIS_PREFIX",
            "EA_KUBE_IN_CLUSTER",
            "EA_REDIS_URLS",
            "EA_TRUSTED_PROXIES",
            "EA_HEADER_TIMEOUT",
            "EA_FIRST_BYTE_TIMEOUT",
            "EA_GRPC_MIN_PING_INTERVAL",
        ] {
            assert!(found.contains(named), "{named} is not in: {found}");
        }
        assert!(!found.contains("s3cret"), "{found}");
    }

    #[test]
    fn broken_redis_urls_are_refused_without_their_passwords() {
        for url in [
            "redis://:s3cret@",
            "redis://u:s3cret@host:notaport",
            "redis://u:s3cret@host:6379/notadb",
            "redis://u:s3cret@host:6379#insecure",
            "http://u:s3cret@host",
            "u:s3cret@host:6379",
            "redis://u:s3cret@ho st",
            "redis://admin:1234/s3cret@host:6379",
            "redis://admin/s3cret@host",
            "redis://admin:12?s3cret@host:6379",
            "redis://h?password=s3cret",
            "redis://u:pa,s3cret:word@host",
            "s3cret:hunter2@host",
        ] {
            let found = mistakes(&[("EA_REDIS_URLS", url)]);
            assert!(found.contains("EA_REDIS_URLS"), "{url}: {found}");
            assert!(
                !credentials::hide_credentials(url).contains("s3cret"),
                "{url}"
            );
            assert!(
                found.contains("redis[s]://user:password@host:port/db"),
                "{url}: {found}"
            );
            assert!(!found.contains("s3cret"), "{url}: {found}");
        }
    }

    #[test]
    fn a_password_that_yaml_takes_for_a_key_is_not_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (text, expected) in [
            ("redis_urls: {redis://u:s3cret@h: }", "EA_REDIS_URLS: in "),
            (
                "redis_sentinel_password: {s3cret: }",
                "EA_REDIS_SENTINEL_PASSWORD: in ",
            ),
            (
                "redis: {sentinel_password: {s3cret: }}",
                "write redis_sentinel_password",
            ),
            ("redis: {urls: redis://u:s3cret@h}", "write redis_urls"),
            (
                "redis_urls: [redis://u:s3cret@h, [x]]",
                "EA_REDIS_URLS: in ",
            ),
            ("redis_urls: !x redis://u:s3cret@h", "EA_REDIS_URLS: in "),
            ("{redis://u:s3cret@h: }", "the key \"redis…\", which is no"),
            ("max_terms: 1s", "the key \"max_terms\", which is no"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let path = file.path().display().to_string();
            let mistakes = Values::collect(Vec::new(), Some(path), []).expect_err(text);
            let mistakes = mistakes.to_string();
            assert!(
                mistakes.contains(expected),
                "{expected} is not in: {mistakes}"
            );
            assert!(!mistakes.contains("s3cret"), "{mistakes}");
        }
    }

    #[test]
    fn an_alias_and_its_setting_must_not_contradict() {
        let config = config(&[("EA_KEY_PREFIX", "mine")]).expect("valid");
        assert_eq!(config.store.prefix, "mine");
        let found = mistakes(&[("EA_KEY_PREFIX", "mine"), ("EA_REDIS_PREFIX", "yours")]);
        assert!(
            found.contains("EA_KEY_PREFIX") && found.contains("EA_REDIS_PREFIX"),
            "{found}"
        );
    }

    #[test]
    fn a_list_may_be_one_of_yamls() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "redis_urls: [redis://a, redis://b]\nmetrics_per_election: [a, 1, true]\n";
        std::fs::write(file.path(), text).expect("written");
        let path = file.path().display().to_string();
        let values = Values::collect(Vec::new(), Some(path), []).expect("reads");
        assert_eq!(values.get("EA_METRICS_PER_ELECTION").0, "a,1,true");
        let config = Config::new(values).expect("valid");
        assert_eq!(config.store.deployments.len(), 2);
        // A setting whose default has several entries is a list.
        for setting in settings().filter(|setting| setting.default.contains(',')) {
            assert!(setting.is_list, "{}", setting.variable);
        }
        let comma = |setting: &&Setting| setting.meaning.contains("comma separated");
        for setting in settings().filter(comma) {
            assert!(setting.is_list, "{}", setting.variable);
        }
    }

    #[test]
    fn production_keeps_leases_in_memory_only_if_that_is_said() {
        let found = mistakes(&[("EA_ENV", "production")]);
        for named in [
            "EA_STORE",
            "EA_REDIS_URLS",
            "EA_EMBEDDED_PATH",
            "EA_STORE=memory",
        ] {
            assert!(found.contains(named), "{named} is not in: {found}");
        }
        for env in ["production", "development", "test"] {
            let memory = [("EA_ENV", env), ("EA_STORE", "memory")];
            assert!(config(&memory).is_ok());
            let redis = [("EA_ENV", env), ("EA_REDIS_URLS", "redis://h")];
            assert!(config(&redis).is_ok());
            let file = [("EA_ENV", env), ("EA_EMBEDDED_PATH", "/tmp/x")];
            assert!(config(&file).is_ok());
        }
        assert!(config(&[("EA_ENV", "test")]).is_ok());
        let empty = Values::collect(Vec::new(), None, []).expect("reads");
        assert!(Config::of_command(empty).is_ok());
    }

    #[test]
    fn a_store_that_contradicts_other_settings_is_refused() {
        let (urls, path) = (
            ("EA_REDIS_URLS", "redis://h"),
            ("EA_EMBEDDED_PATH", "/tmp/x"),
        );
        for (store, given, named) in [
            ("memory", vec![urls], "EA_REDIS_URLS"),
            ("memory", vec![path], "EA_EMBEDDED_PATH"),
            ("file", vec![], "EA_EMBEDDED_PATH"),
            ("file", vec![urls], "EA_REDIS_URLS"),
            ("redis", vec![], "EA_REDIS_URLS"),
            ("redis", vec![path], "EA_EMBEDDED_PATH"),
            ("disk", vec![], "memory, file or redis"),
            ("", vec![urls, path], "EA_EMBEDDED_PATH"),
        ] {
            for env in ["production", "development"] {
                let all = [&[("EA_STORE", store), ("EA_ENV", env)], &given[..]].concat();
                let found = mistakes(&all);
                assert!(found.contains(named), "{all:?}: {found}");
            }
        }
        for (store, given) in [("file", path), ("redis", urls)] {
            assert!(config(&[("EA_STORE", store), given]).is_ok());
        }
    }

    #[test]
    fn a_variable_that_resembles_a_setting_is_a_mistake_and_others_are_ignored() {
        for (name, value, expected) in [
            ("EA_REDIS_URL", "x", "did you mean EA_REDIS_URLS?"),
            ("ea_redis_urls", "x", "did you mean EA_REDIS_URLS?"),
            (
                "EA_SERVERS",
                "rediss://u:s3cret@h",
                "did you mean EA_REDIS_URLS?",
            ),
        ] {
            let mistakes = mistakes(&[(name, value)]);
            assert!(
                mistakes.starts_with(name) && mistakes.contains(expected),
                "{mistakes}"
            );
            assert!(!mistakes.contains("s3cret"), "{mistakes}");
        }
        let config = config(&[
            ("EA_TEAM", "a"),
            ("ea_team", "b"),
            ("EA_REDIS_URL", ""),
            ("EA_WEB_SERVICE_HOST", "10.0.0.1"),
            ("EA_WEB_PORT", "tcp://10.0.0.1:80"),
            ("EA_HTTP_SERVICE_HOST", "10.0.0.1"),
            ("EA_HTTP_PORT", "tcp://10.0.0.1:80"),
        ])
        .expect("valid");
        let ignored: Vec<_> = config.ignored().iter().map(|it| &it.variable).collect();
        assert_eq!(ignored, ["EA_HTTP_PORT", "EA_TEAM"]);
        assert_eq!(config.listen.http_port, 80);
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        assert!(config(&[("EA_REDIS_URLS", ""), ("EA_GRPC_PORT", "")]).is_ok());
    }

    #[test]
    fn a_server_that_is_named_twice_is_refused() {
        for mode in ["single", "cluster"] {
            let with = |urls| [("EA_REDIS_MODE", mode), ("EA_REDIS_URLS", urls)];
            let three = config(&with("redis://a:1,redis://b,redis://a:2")).expect("valid");
            assert_eq!(three.store.deployments.len(), 3);
            for twice in [
                "redis://a,redis://b,redis://u:p@a:6379",
                "redis://a:1 , rediss://a:1",
            ] {
                let found = mistakes(&with(twice));
                assert!(found.contains("name the same server, a:"), "{found}");
            }
        }
        let found = mistakes(&[("EA_REDIS_URLS", "redis://a/0,redis://a/1")]);
        assert!(found.contains("name the same server, a:6379"), "{found}");
        let found = mistakes(&[
            ("EA_REDIS_MODE", "cluster"),
            ("EA_REDIS_URLS", "redis://a?addr=b,redis://c?addr=b"),
        ]);
        assert!(found.contains("name the same server, b:6379"), "{found}");
        let found = mistakes(&[
            ("EA_REDIS_MODE", "failover"),
            ("EA_REDIS_MASTER", "m"),
            ("EA_REDIS_URLS", "redis://a,redis://a"),
        ]);
        assert!(found.contains("name the same server, a:6379"), "{found}");
    }

    #[test]
    fn a_list_without_urls_is_not_taken_for_none() {
        for urls in [",", " ", " , "] {
            let found = mistakes(&[("EA_REDIS_URLS", urls)]);
            assert!(found.contains("it holds no URL"), "{found}");
        }
    }

    #[test]
    fn a_file_of_authorities_must_hold_one_and_be_used() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().display().to_string();
        for (text, url, expected) in [
            ("", "rediss://h", "holds no certificate"),
            ("junk", "rediss://h", "holds no certificate"),
            ("", "redis://h", "has no rediss:// URL"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let env = [
                ("EA_REDIS_TLS_CA_FILE", path.as_str()),
                ("EA_REDIS_URLS", url),
            ];
            let mistakes = mistakes(&env);
            assert!(
                mistakes.contains(expected),
                "{expected} is not in: {mistakes}"
            );
        }
    }

    #[test]
    fn what_needs_another_setting_says_so() {
        for (env, named) in [
            (&[("EA_REDIS_MODE", "failover")][..], "EA_REDIS_URLS"),
            (&[("EA_REDIS_MODE", "cluster")], "EA_REDIS_URLS"),
            (
                &[
                    ("EA_REDIS_MODE", "failover"),
                    ("EA_REDIS_URLS", "redis://s"),
                ],
                "EA_REDIS_MASTER",
            ),
            (&[("EA_REDIS_MASTER", "m")], "EA_REDIS_MASTER"),
            (
                &[("EA_REDIS_SENTINEL_PASSWORD", "p")],
                "EA_REDIS_SENTINEL_PASSWORD",
            ),
            (&[("EA_REDIS_PARTITIONS", "16")], "EA_REDIS_PARTITIONS"),
            (
                &[
                    ("EA_REDIS_MODE", "cluster"),
                    ("EA_REDIS_URLS", "redis://c"),
                    ("EA_REDIS_PARTITIONS", "16385"),
                ],
                "EA_REDIS_PARTITIONS",
            ),
            (
                &[
                    ("EA_REDIS_MODE", "failover"),
                    ("EA_REDIS_MASTER", "m"),
                    ("EA_REDIS_URLS", "redis://s,redis://u:p@t"),
                ],
                "EA_REDIS_URLS",
            ),
            (
                &[
                    ("EA_EMBEDDED_PATH", "/tmp/x"),
                    ("EA_REDIS_URLS", "redis://localhost"),
                ],
                "EA_EMBEDDED_PATH",
            ),
            (
                &[("EA_KUBE_NAMESPACES", "shop,Shop_2")],
                "EA_KUBE_NAMESPACES",
            ),
            (&[("EA_KUBE_CONTEXT", "staging")], "EA_KUBE_CONTEXT"),
            (&[("EA_KUBE_CACHE_TTL", "2m")], "EA_KUBE_CACHE_TTL"),
            (
                &[("EA_KUBE_MAX_STALENESS", "10ms")],
                "EA_KUBE_MAX_STALENESS",
            ),
            (
                &[("EA_GRPC_ENABLE", "false"), ("EA_HTTP_ENABLE", "false")],
                "EA_HTTP_ENABLE",
            ),
        ] {
            let found = mistakes(env);
            assert!(found.contains(named), "{env:?}: {found}");
        }
    }

    #[test]
    fn the_printed_configuration_hides_secrets_and_reads_back() {
        let config = config(&[
            ("EA_REDIS_MODE", "failover"),
            ("EA_REDIS_MASTER", "main"),
            ("EA_REDIS_SENTINEL_PASSWORD", "s3cret"),
            ("EA_REDIS_URLS", "rediss://u:s3cret@h:1/2"),
            ("EA_GRPC_PORT", "9"),
        ])
        .expect("valid");
        let printed = config.to_string();
        assert!(!printed.contains("s3cret"), "{printed}");
        assert!(printed.contains("rediss://u:***@h:1/2"), "{printed}");
        assert!(
            printed.contains("redis_sentinel_password: \"***\""),
            "{printed}"
        );
        assert!(
            printed.contains("grpc_port: \"9\" # EA_GRPC_PORT, environment"),
            "{printed}"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &printed).expect("written");
        let path = file.path().display().to_string();
        let again = Config::new(Values::collect(Vec::new(), Some(path), []).expect("reads"));
        assert_eq!(again.expect("valid").listen.grpc_port, 9);
    }

    #[test]
    fn the_fingerprint_is_of_the_settings_wherever_they_are_from_and_of_no_secret() {
        let of = |env: &[(&str, &str)]| config(env).expect("valid").fingerprint();
        let plain = of(&[]);
        assert_eq!(plain.len(), 16);
        assert!(
            plain.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "{plain}"
        );
        assert_eq!(of(&[("EA_MAX_TERM", "60s")]), plain, "the default, set");
        assert_ne!(of(&[("EA_MAX_TERM", "50s")]), plain);
        assert_eq!(
            of(&[("EA_KEY_PREFIX", "p")]),
            of(&[("EA_REDIS_PREFIX", "p")]),
            "by its other name"
        );
        let with = |url| of(&[("EA_REDIS_URLS", url)]);
        assert_eq!(with("redis://u:one@h"), with("redis://u:two@h"));
        assert_ne!(with("redis://u:one@h"), with("redis://u:one@i"));
        let printed = config(&[]).expect("valid").to_string();
        assert!(
            printed.starts_with(&format!("# fingerprint: {plain}\n")),
            "{printed}"
        );
    }

    #[test]
    fn a_bad_file_is_refused_naming_what_is_wrong() {
        for (text, named) in [
            ("grpc_prot: 1\n", "grpc_prot"),
            ("- 1\n", "EA_CONFIG_FILE"),
            ("grpc_port: [1, {a: b}]\n", "grpc_port"),
            ("a: b: c\n", "EA_CONFIG_FILE"),
            ("EA_GRPC_PORT: 1\n", "did you mean grpc_port?"),
            ("grpc-port: 1\n", "did you mean grpc_port?"),
            ("grpc: {port: 2}\n", "write grpc_port"),
            (
                "grpc: {max: {connection_age: 2s}, prot: 1}\n",
                "write grpc_max_connection_age",
            ),
            ("grpc: {}\n", "the key \"grpc\", which is no setting"),
            ("log_level: [debug]\n", "EA_LOG_LEVEL: in "),
            ("grpc_port: [1]\n", "EA_GRPC_PORT: in "),
            ("grpc_port: []\n", "EA_GRPC_PORT: in "),
            ("max_term: {seconds: 5}\n", "EA_MAX_TERM: in "),
            ("auth_modes: [token, [none]]\n", "EA_AUTH_MODES: in "),
            ("auth_modes: [token, null]\n", "EA_AUTH_MODES: in "),
            ("auth_modes: [{token: }]\n", "EA_AUTH_MODES: in "),
            ("redis_url: redis://h\n", "did you mean redis_urls?"),
            ("key_prefix: a\nredis_prefix: b\n", "twice"),
        ] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), text).expect("written");
            let path = Some(file.path().display().to_string());
            let found = Values::collect(Vec::new(), path, [])
                .expect_err("refused")
                .to_string();
            assert!(found.contains(named), "{text}: {found}");
        }
        let missing = Values::collect(Vec::new(), Some("/no/such/file".to_owned()), []);
        assert!(
            missing
                .expect_err("refused")
                .to_string()
                .contains("/no/such/file")
        );
    }
}
