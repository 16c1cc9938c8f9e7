//! Measures how the cost grows with clients, nodes and held elections.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use http::StatusCode;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    bench::{
        get,
        loads::{allow_connections, ask, sound, uri},
        processes::{Agent, LONG_TERM, Redis},
        sink::Sink,
        table::{Table, grouped},
        write,
    },
    caller::Protocol,
    options::{Amount, Grows, Growth, Load, Scenario},
    report::Report,
    run::run,
    usage,
};

/// The number of clients while something else grows.
const CLIENTS: u32 = 100;
/// The number of nodes while something else grows.
const NODES: u32 = 3;
/// The maximum duration of a warm-up load.
const WARM_UP: Duration = Duration::from_secs(1);
/// The number of clients that win the elections to be held.
const FILLERS: u32 = 200;
/// How many elections they win on the same connections, which the agent closes after some minutes.
const FILL_AT_ONCE: u32 = 100_000;
/// How often a document is requested; the median counts.
const ASKED: usize = 9;

/// A row of a table.
#[derive(Debug, Serialize)]
struct Row {
    /// The number of clients, nodes or elections.
    number: u32,
    /// The result of the load.
    report: Report,
    /// The agent's memory before the first client came, in bytes.
    idle_bytes: u64,
    /// How long documents about all elections take; only where elections grow.
    documents: Option<Documents>,
}

/// The duration of document requests on new connections, in ms.
#[derive(Debug, Clone, Copy, Serialize)]
struct Documents {
    metrics: f64,
    /// The first 100 leaders.
    page: f64,
}

/// Measures, and prints a table for each growing quantity.
///
/// # Errors
/// Returns an error if a load had errors, or a required program is missing.
pub async fn growth(options: &Growth) -> Result<(), String> {
    let all = [Grows::Clients, Grows::Nodes, Grows::Elections];
    let grows = match options.what {
        Some(what) => vec![what],
        None => all.to_vec(),
    };
    let connections = match grows.contains(&Grows::Clients) {
        true => options.clients.iter().copied().max(),
        false => None,
    };
    // Checked before minutes of measurement.
    allow_connections(connections.unwrap_or(0).max(FILLERS))?;
    let sink = Sink::start().await?;
    let mut tables = BTreeMap::new();
    for what in grows {
        let rows = match what {
            Grows::Clients => clients(options, &sink).await?,
            Grows::Nodes => nodes(options, &sink).await?,
            Grows::Elections => elections(options, &sink).await?,
        };
        let (title, table) = (title(what), table(what, &rows));
        println!("{title}:\n\n{table}");
        tables.insert(what.to_string(), rows);
    }
    match &options.json {
        Some(path) => write(path, &tables),
        None => Ok(()),
    }
}

async fn clients(options: &Growth, sink: &Sink) -> Result<Vec<Row>, String> {
    let servers = Redis::start_all(NODES).await?;
    let mut rows = Vec::new();
    for &clients in &options.clients {
        eprintln!("{clients} clients");
        rows.push(mixed(options, &servers, sink, clients, clients).await?);
    }
    Ok(rows)
}

async fn nodes(options: &Growth, sink: &Sink) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for &nodes in &options.nodes {
        eprintln!("{nodes} nodes");
        let servers = Redis::start_all(nodes).await?;
        rows.push(mixed(options, &servers, sink, nodes, CLIENTS).await?);
    }
    Ok(rows)
}

/// Runs the mixed load on a new agent.
async fn mixed(
    options: &Growth,
    servers: &[Redis],
    sink: &Sink,
    number: u32,
    clients: u32,
) -> Result<Row, String> {
    let agent = Agent::start(&options.agent, servers, sink).await?;
    let idle_bytes = usage::memory(agent.pid())?;
    Ok(Row {
        number,
        report: warm(options, &agent, servers, clients).await?,
        idle_bytes,
        documents: None,
    })
}

/// Runs the mixed load after a warm-up that is not reported.
async fn warm(
    options: &Growth,
    agent: &Agent,
    servers: &[Redis],
    clients: u32,
) -> Result<Report, String> {
    let load = async |duration| {
        let amount = Amount::Duration(duration);
        ask(
            agent,
            servers,
            Protocol::Grpc,
            Scenario::Mixed,
            clients,
            amount,
        )
        .await
    };
    load(options.duration.min(WARM_UP)).await?;
    load(options.duration).await
}

/// Measures one agent with a growing number of held elections.
async fn elections(options: &Growth, sink: &Sink) -> Result<Vec<Row>, String> {
    let servers = Redis::start_all(NODES).await?;
    let agent = Agent::start(&options.agent, &servers, sink).await?;
    let idle_bytes = usage::memory(agent.pid())?;
    let mut numbers = options.elections.clone();
    numbers.sort_unstable();
    let mut held = 0;
    let mut rows = Vec::new();
    for number in numbers {
        eprintln!("{number} elections");
        while held < number {
            held += fill(&agent, (number - held).min(FILL_AT_ONCE)).await?;
        }
        let documents = Documents {
            metrics: millis(agent.http(), "/metrics").await?,
            page: millis(agent.http(), "/elections?page_size=100").await?,
        };
        rows.push(Row {
            number: held,
            report: warm(options, &agent, &servers, CLIENTS).await?,
            idle_bytes,
            documents: Some(documents),
        });
    }
    Ok(rows)
}

/// Has clients win this many elections for a long term, rounded up so that each client wins the same number.
async fn fill(agent: &Agent, elections: u32) -> Result<u32, String> {
    let clients = elections.min(FILLERS);
    let each = elections.div_ceil(clients);
    let amount = Amount::Iterations(u64::from(each));
    let mut load = Load::of(uri(agent.grpc())?, Scenario::Hold, clients, amount);
    load.term = LONG_TERM;
    run(Protocol::Grpc, &load).await.and_then(sound)?;
    Ok(clients * each)
}

/// The median duration of a request for a document.
async fn millis(address: SocketAddr, path: &str) -> Result<f64, String> {
    let mut took = Vec::new();
    for _ in 0..ASKED {
        let asked = Instant::now();
        let (status, _) = get(address, path).await?;
        took.push(asked.elapsed().as_secs_f64() * 1e3);
        if status != StatusCode::OK {
            return Err(format!("http://{address}{path} is answered with {status}"));
        }
    }
    took.sort_by(f64::total_cmp);
    Ok(took[ASKED / 2])
}

fn title(what: Grows) -> String {
    let load = "Mixed requests over gRPC";
    match what {
        Grows::Clients => format!("{load}, {NODES} nodes, each client on a connection of its own"),
        Grows::Nodes => format!("{load}, {CLIENTS} clients"),
        Grows::Elections => {
            format!("{load}, {NODES} nodes, {CLIENTS} clients, while so many elections are held")
        }
    }
}

fn table(what: Grows, rows: &[Row]) -> Table {
    let mut head = match what {
        Grows::Clients => vec!["clients"],
        Grows::Nodes => vec!["nodes"],
        Grows::Elections => vec!["elections"],
    };
    head.extend([
        "requests/s",
        "p50 ms",
        "p99 ms",
        "agent CPU µs/request",
        "agent MB",
    ]);
    if what == Grows::Clients {
        head.push("KiB/connection");
    }
    head.extend(["Redis CPU µs/request", "Redis MB"]);
    if what == Grows::Elections {
        head.extend(["/metrics ms", "page of leaders ms"]);
    }
    let mut table = Table::new(&head);
    for row in rows {
        let report = &row.report;
        let millis = |micros: u64| format!("{:.1}", micros as f64 / 1e3);
        let cpu = |micros: Option<f64>| micros.map_or("–".to_owned(), |us| format!("{us:.1}"));
        let memory = report.agent.map_or(0, |used| used.peak_memory);
        let redis: u64 = report.redis.iter().map(|used| used.peak_memory).sum();
        let mut cells = vec![
            grouped(f64::from(row.number)),
            grouped(report.requests_per_second),
            millis(report.latency.unwrap_or_default().p50),
            millis(report.latency.unwrap_or_default().p99),
            cpu(report.agent_cpu_micros),
            grouped(memory as f64 / 1e6),
        ];
        if what == Grows::Clients {
            let over = memory.saturating_sub(row.idle_bytes) as f64;
            cells.push(format!("{:.1}", over / f64::from(row.number) / 1024.0));
        }
        cells.extend([cpu(report.redis_cpu_micros), grouped(redis as f64 / 1e6)]);
        if let Some(Documents { metrics, page }) = row.documents {
            cells.extend([metrics, page].map(|millis| format!("{millis:.1}")));
        }
        table.push(cells);
    }
    table
}
