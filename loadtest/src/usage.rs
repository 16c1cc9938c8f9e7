//! What processes of this machine use, by `/proc` ([proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html)).

use std::{fs, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::interval;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The unit of CPU times in `/proc`, in a second: 100 on every Linux that there is.
const TICKS: f64 = 100.0;

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// CPU time in seconds, of user and system.
    pub cpu_seconds: f64,
    /// The most memory that was resident at once, in bytes.
    pub peak_memory: u64,
}

/// Looks at a process for as long as a future takes.
///
/// # Errors
/// There is no such process, or no `/proc`.
pub async fn during<T>(
    pids: &[u32],
    what: impl Future<Output = T>,
) -> Result<(T, Vec<Used>), String> {
    let before: Vec<_> = pids.iter().map(|pid| cpu(*pid)).collect::<Result<_, _>>()?;
    let mut peaks: Vec<_> = pids
        .iter()
        .map(|pid| memory(*pid))
        .collect::<Result<_, _>>()?;
    let mut looks = interval(LOOK_EVERY);
    let mut what = std::pin::pin!(what);
    let done = loop {
        tokio::select! {
            done = &mut what => break done,
            _ = looks.tick() => {
                for (peak, pid) in peaks.iter_mut().zip(pids) {
                    *peak = memory(*pid).unwrap_or(0).max(*peak);
                }
            }
        }
    };
    let mut used = Vec::new();
    for ((pid, before), peak_memory) in pids.iter().zip(before).zip(peaks) {
        let cpu_seconds = cpu(*pid)? - before;
        used.push(Used {
            cpu_seconds,
            peak_memory,
        });
    }
    Ok((done, used))
}

/// The CPU time of a process and its threads, in seconds.
fn cpu(pid: u32) -> Result<f64, String> {
    let stat = read(pid, "stat")?;
    // The second field is the program's name in parentheses, which may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<f64>().ok());
    let (user, system) = (ticks(), ticks());
    let (user, system) = user
        .zip(system)
        .ok_or(format!("/proc/{pid}/stat has no CPU times"))?;
    Ok((user + system) / TICKS)
}

/// How much of a process is resident, in bytes.
fn memory(pid: u32) -> Result<u64, String> {
    let status = read(pid, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| 1024 * kilobytes)
        .ok_or(format!("/proc/{pid}/status has no VmRSS"))
}

fn read(pid: u32, file: &str) -> Result<String, String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|error| format!("{path}: {error}: is {pid} a process here?"))
}
