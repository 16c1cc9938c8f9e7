//! One page of leaders from the pages of several nodes.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    lease::{
        Kinds, Lease, Page,
        policy::{Electorate, Nodes},
        tally::{agreed, votes},
    },
    types::ElectionId,
};

/// The result of merging pages.
#[derive(Debug)]
pub struct Merged {
    /// The leases on which a quorum of pages agrees.
    pub page: Page,
    /// Whether every page has all of them.
    pub unanimous: bool,
    /// Whether a quorum may hold elections that the page lacks, with the votes of the nodes without a complete page.
    pub undecided: bool,
}

/// Merges the pages of some nodes, each with its place in the electorate, into one of at most `limit` leases.
#[must_use]
pub fn merge(pages: &[(usize, Page)], electorate: Electorate, limit: usize) -> Merged {
    // A page says nothing of elections after its last.
    let upto = pages
        .iter()
        .filter_map(|(_, page)| page.next.as_ref())
        .min();
    let complete = pages.iter().filter(|(_, page)| page.incomplete.is_none());
    let complete: Nodes = complete.map(|(node, _)| *node).collect();
    let silent = electorate.nodes().without(complete);
    let mut found: BTreeMap<&ElectionId, Vec<(usize, Lease)>> = BTreeMap::new();
    for (node, page) in pages {
        for (election, lease) in &page.leases {
            if upto.is_none_or(|upto| election <= upto) {
                let leases = found.entry(election).or_default();
                leases.push((*node, lease.clone()));
            }
        }
    }
    let asked: Nodes = pages.iter().map(|(node, _)| *node).collect();
    let unanimous = found
        .values()
        .all(|leases| votes(leases, &leases[0].1.leader) == asked);
    let mut merged = Page {
        next: upto.cloned(),
        ..Page::default()
    };
    // The elections that no page has.
    let mut undecided = electorate.any(silent);
    for (election, leases) in found {
        if let Some(lease) = agreed(&leases, electorate) {
            merged.leases.push((election.clone(), lease));
        } else {
            let mut leaders = leases.iter().map(|(_, lease)| &lease.leader);
            undecided |= leaders.any(|leader| electorate.any(votes(&leases, leader).and(silent)));
        }
        if merged.leases.len() == limit {
            merged.next = Some(election.clone());
            break;
        }
    }
    Merged {
        page: merged,
        unanimous,
        undecided,
    }
}

/// Merges the kinds of several nodes, or of several partitions, into one page of at most `limit` kinds: each kind that
/// one of them has. A kind with an election that a majority holds is on one of any majority.
#[must_use]
pub fn merge_kinds(pages: Vec<Kinds>, limit: usize) -> Kinds {
    // A page says nothing of kinds after its last.
    let upto = pages.iter().filter_map(|page| page.next.clone()).min();
    let incomplete = pages.iter().find_map(|page| page.incomplete.clone());
    let kinds = pages.into_iter().flat_map(|page| page.kinds);
    let kinds: BTreeSet<_> = kinds
        .filter(|kind| upto.as_ref().is_none_or(|upto| kind <= upto))
        .collect();
    let full = kinds.len() >= limit;
    let kinds: Vec<_> = kinds.into_iter().take(limit).collect();
    Kinds {
        next: if full { kinds.last().cloned() } else { upto },
        kinds,
        incomplete,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{Candidate, Kind, Token, Value};

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
            incomplete: None,
        }
    }

    fn merged(pages: &[Page], limit: usize) -> (Vec<String>, Option<String>, bool) {
        let numbered: Vec<_> = pages.iter().cloned().enumerate().collect();
        let electorate = Electorate::of(Nodes::first(3));
        let Merged {
            page, unanimous, ..
        } = merge(&numbered, electorate, limit);
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
    fn kinds_are_those_of_any_page_up_to_where_all_pages_go() {
        let page = |kinds: &[&str], next: Option<&str>| Kinds {
            kinds: kinds.iter().map(|kind| kind_of(kind)).collect(),
            next: next.map(kind_of),
            incomplete: None,
        };
        let merged = |pages: &[Kinds], limit| merge_kinds(pages.to_vec(), limit);
        let (one, two) = (page(&["a", "c"], None), page(&["b", "c"], None));
        assert_eq!(
            merged(&[one.clone(), two.clone()], 9),
            page(&["a", "b", "c"], None)
        );
        assert_eq!(
            merged(&[one.clone(), two.clone()], 2),
            page(&["a", "b"], Some("b"))
        );
        let short = page(&["a", "b"], Some("b"));
        assert_eq!(
            merged(&[one.clone(), short], 9),
            page(&["a", "b"], Some("b"))
        );
        // In the order of paths: "a!/" comes before "a/".
        let odd = page(&["a!"], Some("a!"));
        assert_eq!(merged(&[one, odd], 9), page(&["a!"], Some("a!")));
        let lacking = Kinds {
            incomplete: Some("a partition is silent".to_owned()),
            ..page(&[], None)
        };
        assert_eq!(
            merged(&[two, lacking.clone()], 9).incomplete,
            lacking.incomplete
        );
    }

    fn kind_of(kind: &str) -> Kind {
        Kind::new(kind).expect("valid")
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

    #[test]
    fn a_listing_is_undecided_while_those_not_heard_could_make_a_quorum() {
        let of = |nodes, pages: &[Page]| {
            let numbered: Vec<_> = pages.iter().cloned().enumerate().collect();
            merge(&numbered, Electorate::of(Nodes::first(nodes)), 10).undecided
        };
        let undecided = |pages: &[Page]| of(3, pages);
        let full = page(&[("a", "x"), ("b", "y")], None);
        let lacking = page(&[("a", "x")], None);
        let incomplete = |page: &Page| Page {
            incomplete: Some("a partition is silent".to_owned()),
            ..page.clone()
        };
        assert!(!undecided(&[full.clone(), full.clone()]));
        assert!(
            undecided(&[full.clone(), lacking.clone()]),
            "the third may have it"
        );
        assert!(!undecided(&[
            full.clone(),
            lacking.clone(),
            lacking.clone()
        ]));
        let other = page(&[("a", "x"), ("b", "z")], None);
        assert!(
            !undecided(&[full.clone(), other, lacking.clone()]),
            "a split vote"
        );
        // Two complete pages together have everything that a quorum holds, if they agree.
        assert!(!undecided(&[
            full.clone(),
            full.clone(),
            incomplete(&lacking)
        ]));
        assert!(undecided(&[
            full.clone(),
            lacking.clone(),
            incomplete(&lacking)
        ]));
        assert!(!undecided(&[
            lacking.clone(),
            lacking.clone(),
            incomplete(&full)
        ]));
        assert!(
            undecided(&[full.clone(), incomplete(&full)]),
            "what neither has"
        );
        assert!(undecided(&[
            lacking.clone(),
            incomplete(&lacking),
            incomplete(&lacking)
        ]));
        assert!(of(1, &[incomplete(&full)]));
        assert!(!of(1, &[full]));
    }
}
