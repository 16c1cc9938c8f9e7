//! Settings, from the environment, flags and a YAML file: mistakes are told, and no password ever is.

use std::{cell::RefCell, fs, io::Write as _};

use arbitrary::{Arbitrary, Unstructured};
use election_agent::config::{self, Config, Values};
use tempfile::NamedTempFile;

/// A part of every password.
const MARKER: &str = "Hunter2Marker";
/// Settings that name files, which an input must not choose.
const FILES: [&str; 5] = [
    "EA_TLS_CERT_FILE",
    "EA_TLS_KEY_FILE",
    "EA_TLS_CLIENT_CA_FILE",
    "EA_REDIS_TLS_CA_FILE",
    "EA_EMBEDDED_PATH",
];

#[derive(Debug, Arbitrary)]
struct Given {
    mode: Mode,
    urls: Vec<RedisUrl>,
    source: Source,
    sentinel_password: Option<String>,
    others: Vec<(u8, Value)>,
    file: Option<File>,
}

#[derive(Debug, Arbitrary)]
enum Mode {
    Single,
    Failover,
    Cluster,
    Any(String),
}

/// `scheme://user:password@host`, malformed wherever it can be.
#[derive(Debug, Arbitrary)]
struct RedisUrl {
    scheme: Scheme,
    user: String,
    password: (String, String),
    host: Host,
    rest: String,
}

#[derive(Debug, Arbitrary)]
enum Scheme {
    Redis,
    Rediss,
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Host {
    Usual(u8),
    Any(String),
}

/// Where the URLs are written.
#[derive(Debug, Arbitrary)]
enum Source {
    Environment,
    Flag,
    Plain,
    Quoted,
    List,
    /// In braces, as templates have values: YAML takes it for a key.
    Braces,
}

#[derive(Debug, Arbitrary)]
enum Value {
    Number(u64),
    Duration(u32, u8),
    Word(u8),
    Origins(Vec<String>),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum File {
    Text(String),
    Key(String, String),
    Setting(u8, Value),
}

thread_local! {
    static FILE: RefCell<NamedTempFile> =
        RefCell::new(NamedTempFile::new().expect("a temporary file"));
}

pub(crate) fn run(data: &[u8]) {
    if let Some(file) = data.strip_prefix(b">") {
        read(Vec::new(), Vec::new(), Some(file), false);
        return;
    }
    if let Ok(given) = Given::arbitrary_take_rest(Unstructured::new(data)) {
        given.read();
    }
}

impl Given {
    fn read(&self) {
        let mode = match &self.mode {
            Mode::Single => "single",
            Mode::Failover => "failover",
            Mode::Cluster => "cluster",
            Mode::Any(text) => text,
        };
        let mut env = vec![
            ("EA_ENV".to_owned(), "development".to_owned()),
            ("EA_REDIS_MODE".to_owned(), mode.to_owned()),
        ];
        for (nth, value) in &self.others {
            if let Some(variable) = other(*nth) {
                env.push((variable.to_owned(), value.text()));
            }
        }
        if let Some(password) = &self.sentinel_password {
            let password = format!("{password}{MARKER}");
            env.push(("EA_REDIS_SENTINEL_PASSWORD".to_owned(), password));
        }
        let mut flags = Vec::new();
        let mut file = match &self.file {
            None => String::new(),
            Some(File::Text(text)) => format!("{text}\n"),
            Some(File::Key(key, value)) => format!("{key}: {value}\n"),
            Some(File::Setting(nth, value)) => match other(*nth) {
                Some(variable) => format!("{}: {}\n", key(variable), value.text()),
                None => String::new(),
            },
        };
        let urls: Vec<_> = self.urls.iter().map(RedisUrl::text).collect();
        let joined = urls.join(",");
        let quoted = |text: &str| serde_json::to_string(text).expect("a text");
        match self.source {
            _ if urls.is_empty() => {}
            Source::Environment => env.push(("EA_REDIS_URLS".to_owned(), joined)),
            Source::Flag => flags.push(("EA_REDIS_URLS", joined)),
            Source::Plain => file = format!("redis_urls: {}\n{file}", one_line(&joined)),
            Source::Quoted => file = format!("redis_urls: {}\n{file}", quoted(&joined)),
            Source::Braces => file = format!("redis_urls: {{{}: }}\n{file}", quoted(&joined)),
            Source::List => {
                let list: Vec<_> = urls.iter().map(|url| quoted(url)).collect();
                file = format!("redis_urls: [{}]\n{file}", list.join(", "));
            }
        }
        let file = (!file.is_empty()).then_some(file.as_bytes());
        read(flags, env, file, true);
    }
}

/// Reads the settings; with secrets, these must not be told.
fn read(
    flags: Vec<(&'static str, String)>,
    env: Vec<(String, String)>,
    file: Option<&[u8]>,
    secrets: bool,
) {
    FILE.with_borrow_mut(|stored| {
        let path = file.map(|text| {
            stored.as_file().set_len(0).expect("emptied");
            fs::write(stored.path(), text).expect("written");
            stored.flush().expect("written");
            stored.path().display().to_string()
        });
        let env = env
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        let told = match Values::collect(flags, path, env).and_then(Config::new) {
            Ok(config) => config.to_string(),
            Err(mistakes) => mistakes.to_string(),
        };
        assert!(!told.is_empty());
        assert!(
            !(secrets && told.contains(MARKER)),
            "a password is told: {told}"
        );
    });
}

/// A setting that names no file, and holds no password.
fn other(nth: u8) -> Option<&'static str> {
    config::settings()
        .map(|setting| setting.variable)
        .filter(|variable| !FILES.contains(variable))
        .filter(|variable| !matches!(*variable, "EA_REDIS_URLS" | "EA_REDIS_MODE"))
        .nth(usize::from(nth))
}

fn key(variable: &str) -> String {
    variable.trim_start_matches("EA_").to_ascii_lowercase()
}

fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control() || c.is_whitespace(), "")
}

impl RedisUrl {
    fn text(&self) -> String {
        let scheme = match &self.scheme {
            Scheme::Redis => "redis",
            Scheme::Rediss => "rediss",
            Scheme::Any(text) => text,
        };
        let host = match &self.host {
            Host::Usual(nth) => ["a:1", "b", "[::1]:6379", "10.0.0.1"][usize::from(nth % 4)],
            Host::Any(text) => text,
        };
        // What separates URLs and members would end the password, and what follows be no part of it.
        let (before, after) = &self.password;
        let within = |text: &str| text.replace([',', '&'], "");
        format!(
            "{scheme}://{}:{}{MARKER}{}@{host}{}",
            self.user,
            within(before),
            within(after),
            self.rest
        )
    }
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Duration(number, unit) => {
                let unit = ["ms", "s", "m", "h", "d", "ns", "years", ""][usize::from(unit % 8)];
                format!("{number}{unit}")
            }
            Self::Word(nth) => {
                let words = [
                    "true", "false", "on", "off", "strict", "info", "test", "required", "::", "*",
                ];
                words[usize::from(*nth) % words.len()].to_owned()
            }
            Self::Origins(hosts) => {
                let origins: Vec<_> = hosts.iter().map(|host| format!("https://{host}")).collect();
                origins.join(",")
            }
            Self::Any(text) => text.clone(),
        }
    }
}
