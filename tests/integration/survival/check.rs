//! Whether a record keeps the promises, and how long elections could not be decided.
//!
//! - At most one candidate may act as leader of an election at any instant.
//! - A grant's token is larger than that of every grant answered before.
//! - No candidate is named as the leader for longer than its requests can last.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::record::{Entry, Fault, Hold, Naming, What};

/// Promises that were broken, each with what happened around it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) overlaps: Vec<String>,
    pub(crate) regressions: Vec<String>,
}

/// A time in which a candidate may act as leader.
#[derive(Debug, Clone)]
struct Lead {
    candidate: String,
    from: Instant,
    until: Instant,
}

#[derive(Debug)]
struct Granted<'a> {
    candidate: &'a str,
    asked: Instant,
    answered: Instant,
    used: bool,
    token: u64,
}

/// Looks for broken promises; `entries` are in the order in which they happened.
pub(crate) fn check(entries: &[Entry], faults: &[Fault]) -> Findings {
    let mut findings = Findings::default();
    for (election, entries) in by_election(entries) {
        let leads = leads(&entries);
        for (n, one) in leads.iter().enumerate() {
            for other in &leads[n + 1..] {
                let (from, until) = (one.from.max(other.from), one.until.min(other.until));
                if one.candidate != other.candidate && from < until {
                    findings.overlaps.push(format!(
                        "{} and {} both lead {election} for {:?}:\n{}",
                        one.candidate,
                        other.candidate,
                        until - from,
                        around(from, &entries, faults)
                    ));
                }
            }
        }
        let grants: Vec<_> = entries.iter().filter_map(|entry| granted(entry)).collect();
        for (n, one) in grants.iter().enumerate() {
            for later in &grants[n + 1..] {
                // The order of grants that were requested at the same time and came too late to be of use
                // is not known.
                let ordered = one.answered <= later.asked || (one.used && later.used);
                // A request that is repeated because its answer came too late gets that answer again.
                let repeated = one.candidate == later.candidate && !one.used;
                if (one.token == later.token && !repeated) || (ordered && one.token > later.token) {
                    findings.regressions.push(format!(
                        "{} has token {} of {election}, and later {} has {}:\n{}",
                        one.candidate,
                        one.token,
                        later.candidate,
                        later.token,
                        around(later.answered, &entries, faults)
                    ));
                }
            }
        }
    }
    findings
}

/// Looks for candidates that are named as leaders although none of their requests can be in force.
pub(crate) fn phantoms(namings: &[Naming], holds: &[Hold]) -> Vec<String> {
    let mut found = BTreeMap::new();
    for naming in namings {
        let of_candidate = holds.iter().filter(|hold| {
            hold.election == naming.election
                && hold.candidate == naming.candidate
                && hold.asked <= naming.answered
        });
        let last = of_candidate.map(|hold| hold.until).max();
        if last.is_none_or(|until| until < naming.asked) {
            let late = last.map(|until| naming.asked - until);
            // The latest naming says most.
            found.insert((&naming.election, &naming.candidate), late);
        }
    }
    let phantoms = found
        .iter()
        .map(|((election, candidate), late)| match late {
            Some(late) => format!(
                "{candidate} is said to lead {election} {late:?} after all that it asked for"
            ),
            None => format!("{candidate} is said to lead {election}, and never asked"),
        });
    phantoms.collect()
}

fn granted(entry: &Entry) -> Option<Granted<'_>> {
    match entry.what {
        What::Elected {
            asked,
            token,
            until,
        } => Some(Granted {
            candidate: &entry.candidate,
            asked,
            answered: entry.at,
            used: until > entry.at,
            token,
        }),
        _ => None,
    }
}

fn by_election(entries: &[Entry]) -> BTreeMap<&str, Vec<&Entry>> {
    let mut elections: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        elections.entry(&entry.election).or_default().push(entry);
    }
    elections
}

/// The times in which candidates of one election may act.
fn leads(entries: &[&Entry]) -> Vec<Lead> {
    let mut now: BTreeMap<&str, Lead> = BTreeMap::new();
    let mut over = Vec::new();
    for entry in entries {
        match entry.what {
            What::Elected { until, .. } | What::Extended { until } if until > entry.at => {
                let lead = Lead {
                    candidate: entry.candidate.clone(),
                    from: entry.at,
                    until,
                };
                match now.get_mut(entry.candidate.as_str()) {
                    Some(lead) if lead.until >= entry.at => lead.until = lead.until.max(until),
                    _ => over.extend(now.insert(&entry.candidate, lead)),
                }
            }
            What::Resigns | What::HandsOver | What::Stops => {
                if let Some(mut lead) = now.remove(entry.candidate.as_str()) {
                    lead.until = lead.until.min(entry.at);
                    over.push(lead);
                }
            }
            _ => {}
        }
    }
    over.extend(now.into_values());
    over.sort_unstable_by_key(|lead| lead.from);
    over
}

/// What happened shortly before and after.
fn around(at: Instant, entries: &[&Entry], faults: &[Fault]) -> String {
    let near = |time: Instant| {
        let before = at.saturating_duration_since(time);
        let after = time.saturating_duration_since(at);
        before < Duration::from_secs(5) && after < Duration::from_secs(1)
    };
    let offset = |time: Instant| {
        let before = at.saturating_duration_since(time).as_secs_f64();
        time.saturating_duration_since(at).as_secs_f64() - before
    };
    let mut lines: Vec<(Instant, String)> = Vec::new();
    for fault in faults.iter().filter(|fault| near(fault.at)) {
        lines.push((
            fault.at,
            format!("{:+.4} s: {}", offset(fault.at), fault.kind),
        ));
    }
    for entry in entries.iter().filter(|entry| near(entry.at)) {
        let what = match &entry.what {
            What::Elected {
                asked,
                token,
                until,
            } => format!(
                "elected with {token}, asked {:+.4}, until {:+.4}",
                offset(*asked),
                offset(*until)
            ),
            What::Extended { until } => format!("extended until {:+.4}", offset(*until)),
            other => format!("{other:?}"),
        };
        let line = format!("{:+.4} s: {} {what}", offset(entry.at), entry.candidate);
        lines.push((entry.at, line));
    }
    lines.sort_by_key(|(at, _)| *at);
    let lines: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
    lines.join("\n")
}

/// What a kind of fault cost.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outage {
    /// How often it happened.
    pub(crate) times: usize,
    /// The longest time in which no request about some election got an answer.
    pub(crate) silent: Duration,
    /// The longest time in which some election had no leader and no campaign for it was decided.
    pub(crate) vacant: Duration,
}

/// The outages by kind of fault. Each is looked for from a fault until the next; what is left of it then is
/// the next one's.
pub(crate) fn outages(
    entries: &[Entry],
    faults: &[Fault],
    ended: Instant,
) -> BTreeMap<String, Outage> {
    let mut outages: BTreeMap<String, Outage> = BTreeMap::new();
    let elections = by_election(entries);
    for (n, fault) in faults.iter().enumerate() {
        let next = faults.get(n + 1).map_or(ended, |next| next.at);
        let outage = outages.entry(fault.kind.clone()).or_default();
        outage.times += 1;
        for entries in elections.values() {
            let answers = |of: fn(&What) -> bool| {
                let answers = entries.iter().filter(move |entry| of(&entry.what));
                answers.map(|entry| entry.at).collect::<BTreeSet<_>>()
            };
            for (from, until) in gaps(&answers(What::is_answer), fault.at, next) {
                outage.silent = outage.silent.max(until - from);
            }
            let leads = leads(entries);
            for gap in gaps(&answers(What::is_decided_campaign), fault.at, next) {
                outage.vacant = outage.vacant.max(longest_vacancy(gap, &leads));
            }
        }
    }
    outages
}

/// The times without an answer between two instants.
fn gaps(answers: &BTreeSet<Instant>, from: Instant, until: Instant) -> Vec<(Instant, Instant)> {
    let mut times = vec![from];
    times.extend(answers.range(from..until));
    times.push(until);
    times.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// The longest part of a time in which nobody may act; `leads` are in order of their beginnings.
fn longest_vacancy((from, until): (Instant, Instant), leads: &[Lead]) -> Duration {
    let (mut longest, mut vacant) = (Duration::ZERO, from);
    for lead in leads {
        if lead.from >= until {
            break;
        }
        longest = longest.max(lead.from.saturating_duration_since(vacant));
        vacant = vacant.max(lead.until);
    }
    longest.max(until.saturating_duration_since(vacant))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn at(ms: u64) -> Instant {
        *STARTED + Duration::from_millis(ms)
    }

    fn entry(ms: u64, candidate: &str, what: What) -> Entry {
        Entry {
            at: at(ms),
            election: "e".to_owned(),
            candidate: candidate.to_owned(),
            what,
        }
    }

    fn elected(ms: u64, candidate: &str, token: u64, until: u64) -> Entry {
        asked(ms, ms, candidate, token, until)
    }

    fn asked(asked: u64, ms: u64, candidate: &str, token: u64, until: u64) -> Entry {
        let what = What::Elected {
            asked: at(asked),
            token,
            until: at(until),
        };
        entry(ms, candidate, what)
    }

    fn extended(ms: u64, candidate: &str, until: u64) -> Entry {
        entry(ms, candidate, What::Extended { until: at(until) })
    }

    /// How many overlaps and regressions are found.
    fn found(entries: &[Entry]) -> (usize, usize) {
        let findings = check(entries, &[]);
        (findings.overlaps.len(), findings.regressions.len())
    }

    #[test]
    fn leaders_that_follow_each_other_break_no_promise() {
        let record = [
            elected(0, "a", 1, 100),
            extended(60, "a", 160),
            elected(160, "b", 2, 300),
            entry(200, "b", What::Resigns),
            elected(200, "a", 3, 400),
            entry(250, "a", What::HandsOver),
            elected(251, "b", 4, 500),
            // Its own campaign, in time.
            elected(300, "b", 5, 600),
            entry(599, "b", What::Dies),
            elected(600, "a", 6, 700),
        ];
        assert_eq!(found(&record), (0, 0));
    }

    #[test]
    fn two_that_may_act_at_once_are_found() {
        let granted = [elected(0, "a", 1, 100), elected(99, "b", 2, 200)];
        assert_eq!(found(&granted), (1, 0));
        let findings = check(&granted, &[]);
        assert!(
            findings.overlaps[0].contains("a and b both lead e for 1ms"),
            "{findings:?}"
        );
        let extended_too_late = [
            elected(0, "a", 1, 100),
            elected(120, "b", 2, 300),
            extended(130, "a", 230),
        ];
        assert_eq!(found(&extended_too_late), (1, 0));
        let dead_but_promised = [
            elected(0, "a", 1, 100),
            entry(10, "a", What::Dies),
            elected(50, "b", 2, 150),
        ];
        assert_eq!(found(&dead_but_promised), (1, 0));
        let within = [
            elected(0, "a", 1, 1_000),
            elected(100, "b", 2, 200),
            elected(900, "c", 3, 950),
        ];
        assert_eq!(found(&within), (2, 0));
        let resigned_after = [
            elected(0, "a", 1, 100),
            elected(50, "b", 2, 150),
            entry(60, "a", What::Resigns),
        ];
        assert_eq!(found(&resigned_after), (1, 0));
    }

    #[test]
    fn leaders_of_different_elections_do_not_overlap() {
        let mut other = elected(0, "b", 1, 100);
        other.election = "other".to_owned();
        assert_eq!(found(&[elected(0, "a", 1, 100), other]), (0, 0));
    }

    #[test]
    fn a_token_that_falls_or_stays_is_found() {
        let falls = [elected(0, "a", 5, 10), elected(20, "b", 4, 30)];
        assert_eq!(found(&falls), (0, 1));
        let stays = [elected(0, "a", 5, 10), elected(20, "a", 5, 30)];
        assert_eq!(found(&stays), (0, 1));
        let below_one_long_ago = [
            elected(0, "a", 5, 10),
            elected(20, "b", 7, 30),
            elected(40, "a", 6, 50),
        ];
        assert_eq!(found(&below_one_long_ago), (0, 1));
        // Requested early, granted late: storage sees the tokens in the order in which they are used.
        let slow = [elected(10, "a", 5, 20), asked(0, 30, "b", 4, 40)];
        assert_eq!(found(&slow), (0, 1));
    }

    #[test]
    fn an_answer_that_came_too_late_to_be_used_has_no_order_among_those_asked_for_meanwhile() {
        let late = [asked(5, 30, "b", 6, 40), asked(0, 35, "a", 5, 20)];
        assert_eq!(found(&late), (0, 0));
        let asked_after = [elected(0, "b", 6, 40), asked(41, 90, "a", 5, 80)];
        assert_eq!(found(&asked_after), (0, 1));
    }

    #[test]
    fn only_a_candidate_whose_answer_came_too_late_may_be_given_the_token_again() {
        let late = |candidate| [asked(0, 30, "a", 5, 20), elected(40, candidate, 5, 60)];
        assert_eq!(found(&late("a")), (0, 0));
        assert_eq!(found(&late("b")), (0, 1));
    }

    #[test]
    fn who_is_called_the_leader_for_longer_than_it_can_lead_is_found() {
        let hold = |candidate: &str, asked, until| Hold {
            election: "e".to_owned(),
            candidate: candidate.to_owned(),
            asked: at(asked),
            until: at(until),
        };
        let named = |election: &str, candidate: &str, asked| Naming {
            election: election.to_owned(),
            candidate: candidate.to_owned(),
            asked: at(asked),
            answered: at(asked + 10),
        };
        let holds = [hold("a", 0, 100), hold("a", 200, 300), hold("b", 50, 400)];
        let of = |naming| phantoms(&[naming], &holds).len();
        assert_eq!(of(named("e", "a", 100)), 0);
        assert_eq!(of(named("e", "a", 101)), 1);
        assert_eq!(of(named("e", "a", 190)), 0, "asked for before the answer");
        assert_eq!(of(named("e", "a", 301)), 1);
        assert_eq!(of(named("e", "b", 301)), 0);
        assert_eq!(of(named("e", "b", 30)), 1, "before it asked");
        assert_eq!(of(named("other", "b", 301)), 1);
    }

    #[test]
    fn outages_are_measured_from_the_fault_to_the_answer_and_without_the_leaders_time() {
        let faults = [
            Fault {
                at: at(100),
                kind: "kill".to_owned(),
            },
            Fault {
                at: at(1_000),
                kind: "stop".to_owned(),
            },
        ];
        let record = [
            elected(50, "a", 1, 400),
            extended(250, "a", 600),
            // Vacant from 600; nothing is known until well after the next fault.
            entry(700, "b", What::NotKnown("no quorum".to_owned())),
            elected(1_150, "b", 2, 2_000),
            entry(1_180, "a", What::NotElected),
        ];
        let outages = outages(&record, &faults, at(1_200));
        let millis = |kind: &str| {
            let outage = &outages[kind];
            (outage.silent.as_millis(), outage.vacant.as_millis())
        };
        assert_eq!(millis("kill"), (750, 400));
        assert_eq!(millis("stop"), (150, 150));
    }
}
