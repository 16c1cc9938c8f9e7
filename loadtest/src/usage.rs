//! What processes of this machine use: CPU by their clocks, memory by `/proc`
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

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// CPU time in seconds, of user and system.
    pub cpu_seconds: f64,
    /// The most memory that was resident at once, in bytes.
    pub peak_memory: u64,
}

/// Looks at processes for as long as a future takes. One that has ended by then is given as an error.
///
/// # Errors
/// There is no such process, or no `/proc`.
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

/// The CPU time of a process and its threads, also of those that have ended, in seconds.
///
/// By the process' CPU-time clock
/// ([clock_getcpuclockid(3)](https://man7.org/linux/man-pages/man3/clock_getcpuclockid.3.html)), which counts
/// nanoseconds; what a thread has run since the scheduler last looked, some ms at the most, may be missing. The
/// same in `/proc/PID/stat` is cut to ticks of 10 ms, `/proc/PID/schedstat` is the first thread's alone, and a sum
/// over `/proc/PID/task` falls whenever a thread ends.
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
    Err("the CPU time of other processes is told on Linux only".to_owned())
}

/// How much of a process is resident, in bytes.
///
/// # Errors
/// There is no such process, or no `/proc`.
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
