//! One page of leaders from the pages of several nodes.

use std::collections::BTreeMap;

use crate::{
    election::types::ElectionId,
    lease::{Lease, Page, tally::agreed},
};

/// The leases on which a quorum of pages agrees, and whether every page has all of them.
pub(super) fn merge(pages: &[Page], quorum: usize, limit: usize) -> (Page, bool) {
    // A page says nothing of elections after its last.
    let upto = pages.iter().filter_map(|page| page.next.as_ref()).min();
    let mut found: BTreeMap<&ElectionId, Vec<Lease>> = BTreeMap::new();
    for (election, lease) in pages.iter().flat_map(|page| &page.leases) {
        if upto.is_none_or(|upto| election <= upto) {
            found.entry(election).or_default().push(lease.clone());
        }
    }
    let unanimous = found
        .values()
        .all(|leases| agreed(leases, pages.len()).is_some());
    let mut merged = Page {
        leases: Vec::new(),
        next: upto.cloned(),
    };
    for (election, leases) in found {
        if let Some(lease) = agreed(&leases, quorum) {
            merged.leases.push((election.clone(), lease));
        }
        if merged.leases.len() == limit {
            merged.next = Some(election.clone());
            break;
        }
    }
    (merged, unanimous)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::election::types::{Candidate, Token, Value};

    fn election(name: &str) -> ElectionId {
        ElectionId::new("k", name).expect("valid")
    }

    /// A page of elections, each with its leader, and where the next one starts.
    fn page(held: &[(&str, &str)], next: Option<&str>) -> Page {
        let lease = |leader| Lease {
            leader: Candidate::new("leader", leader).expect("valid"),
            token: Token::new(7).expect("in range"),
            value: Value::default(),
            elected_at: 0,
            remaining: Duration::from_secs(1),
        };
        Page {
            leases: held
                .iter()
                .map(|(name, leader)| (election(name), lease(leader)))
                .collect(),
            next: next.map(election),
        }
    }

    fn merged(pages: &[Page], limit: usize) -> (Vec<String>, Option<String>, bool) {
        let (page, unanimous) = merge(pages, 2, limit);
        let names = page.leases.iter().map(|(id, _)| id.name().to_owned());
        let next = page.next.map(|id| id.name().to_owned());
        (names.collect(), next, unanimous)
    }

    #[test]
    fn a_leader_is_listed_when_a_quorum_has_it() {
        let full = page(&[("a", "x"), ("b", "y"), ("c", "z")], None);
        let lacking = page(&[("a", "x"), ("c", "other")], None);
        let (names, next, unanimous) = merged(&[full.clone(), lacking.clone()], 10);
        assert_eq!((names, next, unanimous), (vec!["a".into()], None, false));
        let (names, _, unanimous) = merged(&[full.clone(), lacking, full], 10);
        assert_eq!(
            (names, unanimous),
            (vec!["a".into(), "b".into(), "c".into()], false)
        );
    }

    #[test]
    fn nothing_is_said_of_elections_beyond_the_shortest_page() {
        let short = page(&[("a", "x")], Some("b"));
        let long = page(&[("a", "x"), ("c", "z"), ("d", "z")], None);
        let (names, next, unanimous) = merged(&[short, long], 10);
        assert_eq!(
            (names, next, unanimous),
            (vec!["a".into()], Some("b".into()), true)
        );
    }

    #[test]
    fn a_full_page_says_where_the_next_one_starts() {
        let all = page(&[("a", "x"), ("b", "y"), ("c", "z")], None);
        let (names, next, _) = merged(&[all.clone(), all], 2);
        assert_eq!(
            (names, next),
            (vec!["a".into(), "b".into()], Some("b".into()))
        );
    }
}
