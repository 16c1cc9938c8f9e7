//! Resources of processes on this machine: CPU time by their clocks, memory by `/proc`
//! ([proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html)).

use std::{fs, time::Duration};

#[cfg(target_os = "linux")]
use nix::{
    errno::Errno,
    time::{ClockId, clock_getcpuclockid},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::time::interval;

/// The interval between samples of memory.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The resources that a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// User and system CPU time, in seconds.
    pub cpu_seconds: f64,
    /// The peak of resident memory, in bytes.
    pub peak_memory: u64,
}

/// Measures processes while a future runs. Returns an error for a process that has exited by then.
///
/// # Errors
/// Returns an error if a process does not exist, or there is no `/proc`.
pub async fn during<T>(
    pids: &[u32],
    what: impl Future<Output = T>,
) -> Result<(T, Vec<Result<Used, String>>), String> {
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
    let used = pids.iter().zip(before).zip(peaks);
    let used = used.map(|((pid, before), peak_memory)| {
        Ok(Used {
            cpu_seconds: cpu(*pid)? - before,
            peak_memory,
        })
    });
    Ok((done, used.collect()))
}

/// The CPU time of a process and its threads, including exited threads, in seconds.
///
/// Reads the process's CPU-time clock
/// ([clock_getcpuclockid(3)](https://man7.org/linux/man-pages/man3/clock_getcpuclockid.3.html)), which counts
/// nanoseconds. The time since the scheduler's last update of a thread, some ms at most, may be missing. The
/// alternatives are worse: `/proc/PID/stat` is truncated to ticks of 10 ms, `/proc/PID/schedstat` covers only
/// the first thread, and a sum over `/proc/PID/task` falls whenever a thread exits.
#[cfg(target_os = "linux")]
fn cpu(pid: u32) -> Result<f64, String> {
    let clock = i32::try_from(pid)
        .map_err(|_| Errno::ESRCH)
        .and_then(|pid| clock_getcpuclockid(Pid::from_raw(pid)));
    let time = clock.and_then(ClockId::now);
    let time = time.map_err(|error| {
        format!("the CPU time of process {pid}: {error}: is {pid} a process here?")
    })?;
    Ok(Duration::from(time).as_secs_f64())
}

#[cfg(not(target_os = "linux"))]
fn cpu(_: u32) -> Result<f64, String> {
    Err("the CPU time of other processes is reported on Linux only".to_owned())
}

/// The resident memory of a process, in bytes.
///
/// # Errors
/// Returns an error if the process does not exist, or there is no `/proc`.
pub fn memory(pid: u32) -> Result<u64, String> {
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
