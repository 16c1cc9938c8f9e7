//! Results: measured, printed, written and compared.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::usage::Used;

/// Latencies in microseconds: up to a minute, to three digits.
pub type Latencies = Histogram<u64>;

/// Creates an empty histogram.
#[must_use]
pub fn latencies() -> Latencies {
    #[expect(clippy::expect_used, reason = "the bounds are constants that fit")]
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds that fit")
}

/// Records a latency.
pub fn enter(latencies: &mut Latencies, latency: Duration) {
    latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
}

/// The observations of clients.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The latencies of replies.
    pub latencies: Latencies,
    /// The number of errors by their code.
    pub errors: BTreeMap<String, u64>,
    /// The message of the first error with each code, if it had one.
    pub messages: BTreeMap<String, String>,
    /// The time from the end of a term to the next leader.
    pub failovers: Latencies,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            latencies: latencies(),
            errors: BTreeMap::new(),
            messages: BTreeMap::new(),
            failovers: latencies(),
        }
    }
}

impl Seen {
    /// Adds the observations of another client.
    pub fn add(&mut self, other: &Self) {
        // Cannot fail: both have the same bounds and precision.
        let _ = self.latencies.add(&other.latencies);
        let _ = self.failovers.add(&other.failovers);
        for (error, times) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += times;
        }
        for (error, message) in &other.messages {
            self.message(error, message);
        }
    }

    /// Records an error and its message.
    pub fn error(&mut self, error: &str, message: &str) {
        *self.errors.entry(error.to_owned()).or_default() += 1;
        self.message(error, message);
    }

    fn message(&mut self, error: &str, message: &str) {
        if !message.is_empty() && !self.messages.contains_key(error) {
            self.messages.insert(error.to_owned(), message.to_owned());
        }
    }
}

/// Quantiles, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50: u64,
    /// 90 % of the values are below.
    pub p90: u64,
    /// 99 % of the values are below.
    pub p99: u64,
    /// 99.9 % of the values are below.
    pub p999: u64,
    /// The maximum.
    pub max: u64,
}

impl Quantiles {
    /// `None` without values.
    pub(crate) fn of(latencies: &Latencies) -> Option<Self> {
        (!latencies.is_empty()).then(|| Self {
            p50: latencies.value_at_quantile(0.5),
            p90: latencies.value_at_quantile(0.9),
            p99: latencies.value_at_quantile(0.99),
            p999: latencies.value_at_quantile(0.999),
            max: latencies.max(),
        })
    }
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The protocol: grpc, rest or grpc-web.
    pub protocol: String,
    /// The name of the scenario.
    pub scenario: String,
    /// The number of concurrent clients.
    pub clients: u32,
    /// The number of connections.
    pub connections: u32,
    /// The rate of requests per second; `None` in a closed loop.
    pub rate: Option<u32>,
    /// The number of requests, including errors.
    pub requests: u64,
    /// The duration of the run, in seconds.
    pub seconds: f64,
    /// Replies per second, without errors.
    pub requests_per_second: f64,
    /// The latency of replies, without errors, in µs; `None` if all replies were errors.
    pub latency: Option<Quantiles>,
    /// The number of errors by their code.
    pub errors: BTreeMap<String, u64>,
    /// The message of the first error with each code, if it had one.
    #[serde(default)]
    pub messages: BTreeMap<String, String>,
    /// The time from the end of a term to the next leader, in µs; only for failovers.
    pub failover: Option<Quantiles>,
    /// The resources of the agent, if its process was given.
    pub agent: Option<Used>,
    /// CPU time of the agent per request, in µs.
    pub agent_cpu_micros: Option<f64>,
    /// The resources of the Redis servers, if their processes were given.
    pub redis: Vec<Used>,
    /// CPU time of all Redis servers together per request, in µs.
    pub redis_cpu_micros: Option<f64>,
}

impl Report {
    /// Adds the results of the observations.
    #[must_use]
    pub fn with(mut self, seen: &Seen, took: Duration) -> Self {
        let failed: u64 = seen.errors.values().sum();
        self.requests = seen.latencies.len() + failed;
        self.seconds = took.as_secs_f64();
        self.requests_per_second = seen.latencies.len() as f64 / self.seconds;
        self.latency = Quantiles::of(&seen.latencies);
        self.errors.clone_from(&seen.errors);
        self.messages.clone_from(&seen.messages);
        self.failover = Quantiles::of(&seen.failovers);
        self
    }

    /// Adds the resources that the agent and all Redis servers have used.
    pub fn charge(&mut self, agent: Option<Used>, redis: Vec<Used>) {
        let each = |cpu_seconds: f64| cpu_seconds * 1e6 / self.requests.max(1) as f64;
        let all: f64 = redis.iter().map(|used| used.cpu_seconds).sum();
        self.agent_cpu_micros = agent.map(|used| each(used.cpu_seconds));
        self.redis_cpu_micros = (!redis.is_empty()).then(|| each(all));
        self.agent = agent;
        self.redis = redis;
    }

    /// Reads a file that [`Report::write`] wrote.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or is not a report.
    pub fn read(path: &Path) -> Result<Self, String> {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| wrong(format!("no result of --json: {error}")))
    }

    /// Writes the result as JSON.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The figures: name, value and unit.
    fn figures(&self) -> Vec<(&'static str, f64, &'static str)> {
        let mut figures = vec![
            ("requests", self.requests as f64, ""),
            ("requests a second", self.requests_per_second, ""),
        ];
        let mut quantiles = |names: [&'static str; 5], of: &Quantiles| {
            let values = [of.p50, of.p90, of.p99, of.p999, of.max];
            figures.extend(
                names
                    .into_iter()
                    .zip(values)
                    .map(|(name, us)| (name, us as f64, "µs")),
            );
        };
        if let Some(latency) = &self.latency {
            quantiles(["p50", "p90", "p99", "p99.9", "max"], latency);
        }
        if let Some(failover) = &self.failover {
            let names = [
                "failover p50",
                "failover p90",
                "failover p99",
                "failover p99.9",
                "failover max",
            ];
            quantiles(names, failover);
        }
        figures.push(("errors", self.errors.values().sum::<u64>() as f64, ""));
        let megabytes = |used: &Used| used.peak_memory as f64 / 1e6;
        if let (Some(cpu), Some(agent)) = (self.agent_cpu_micros, &self.agent) {
            figures.push(("agent CPU a request", cpu, "µs"));
            figures.push(("agent peak memory", megabytes(agent), "MB"));
        }
        if let Some(cpu) = self.redis_cpu_micros {
            figures.push(("Redis CPU a request, all", cpu, "µs"));
            let all = self.redis.iter().map(megabytes).sum();
            figures.push(("Redis peak memory, all", all, "MB"));
        }
        figures
    }
}

impl Report {
    /// A description of the load.
    fn title(&self) -> String {
        let Self {
            protocol,
            scenario,
            clients,
            connections,
            ..
        } = self;
        let rate = self.rate;
        let rate = rate.map_or_else(String::new, |rate| {
            format!(", {rate} requests due a second")
        });
        format!("{scenario} over {protocol}, {clients} clients on {connections} connections{rate}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title())?;
        for (name, value, unit) in self.figures() {
            let digits = if value < 1_000.0 && value.fract() != 0.0 {
                1
            } else {
                0
            };
            writeln!(f, "  {name:<26} {value:>14.digits$} {unit}")?;
        }
        for (error, times) in &self.errors {
            write!(f, "    {times} × {error}")?;
            match self.messages.get(error) {
                Some(message) => writeln!(f, ", such as: {message}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Renders the figures of `a` and `b`, and their ratios.
#[must_use]
pub fn compare(a: &Report, b: &Report) -> String {
    use fmt::Write as _;
    let mut table = format!("A: {}\nB: {}\n", a.title(), b.title());
    let _ = writeln!(table, "{:<28}{:>14}{:>14}{:>10}", "", "A", "B", "B / A");
    let others = b.figures();
    for (name, one, unit) in a.figures() {
        let Some((_, other, _)) = others.iter().find(|(known, ..)| *known == name) else {
            continue;
        };
        let ratio = if one == 0.0 {
            "-".to_owned()
        } else {
            format!("{:.3}", other / one)
        };
        let name = format!("{name} {unit}");
        let _ = writeln!(table, "{name:<28}{one:>14.1}{other:>14.1}{ratio:>10}");
    }
    table
}
