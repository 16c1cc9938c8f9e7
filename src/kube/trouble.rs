//! Tracks repeated failures: decides which ones to log, and how long to wait before the next attempt.

use std::time::Duration;

use super::Error;

/// Delay after the first failure, and the maximum.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How many different errors are logged before a success. The limit exists because some texts contain changing numbers.
const MOST_NEWS: usize = 5;

/// Failures since the last success.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    in_a_row: u32,
    error: Option<String>,
    logged: Vec<String>,
}

impl Trouble {
    /// Records a failure. Returns whether to log it.
    pub(super) fn add(&mut self, error: String) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let news = self.logged.len() < MOST_NEWS && !self.logged.contains(&error);
        if news {
            self.logged.push(error.clone());
        }
        self.error = Some(error);
        news
    }

    /// Records a success. Returns whether it follows a failure.
    pub(super) fn recovered(&mut self) -> bool {
        std::mem::take(self).error.is_some()
    }

    /// Returns the last failure.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Returns the delay before the next attempt: exponential with jitter.
    pub(super) fn pause(&self) -> Duration {
        let doublings = self.in_a_row.saturating_sub(1).min(10);
        let longest = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        longest.mul_f64(fastrand::f64().midpoint(1.0))
    }
}

/// The error when the known pods are older than the maximum staleness.
pub(super) fn too_old(age: Duration, most: Duration) -> Error {
    Error::Unavailable(format!(
        "the data about the pods is {} s old, more than EA_KUBE_MAX_STALENESS ({}): the Kubernetes API server has \
         not confirmed it since; the agent's log has the cause",
        age.as_secs(),
        humantime::format_duration(most)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_until_all_is_well() {
        let mut trouble = Trouble::default();
        let mut expected = FIRST_PAUSE;
        for _ in 0..40 {
            trouble.add("no".to_owned());
            let pause = trouble.pause();
            assert!((expected / 2..=expected).contains(&pause), "{pause:?}");
            expected = (expected * 2).min(LONGEST_PAUSE);
        }
        assert!(trouble.recovered());
        assert!(!trouble.recovered(), "no news");
        trouble.add("no".to_owned());
        assert!(trouble.pause() <= FIRST_PAUSE);
    }

    #[test]
    fn another_error_is_news_but_not_for_ever() {
        let mut trouble = Trouble::default();
        assert!(trouble.add("one".to_owned()));
        assert!(!trouble.add("one".to_owned()));
        assert!(trouble.add("two".to_owned()));
        assert!(!trouble.add("one".to_owned()));
        assert_eq!(trouble.error(), Some("one"));
        let news = (0..100).filter(|n| trouble.add(n.to_string())).count();
        assert_eq!(news, MOST_NEWS - 2);
    }
}
