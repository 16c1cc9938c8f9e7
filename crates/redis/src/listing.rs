//! Listings, combined from all partitions.
//!
//! A partition in trouble does not affect the others: a listing omits what could not be looked up, and the page reports
//! this.

use std::{collections::BTreeMap, pin::pin};

use election_core::{
    lease::{
        KIND_EXAMINES, Kinds, LIST_EXAMINES, Lease, LeaseNode as _, NodeError, Page, Reading,
        merge::{merge, merge_kinds},
        policy::{Electorate, Nodes},
    },
    types::{ElectionId, Kind},
};
use futures_util::{Stream, StreamExt as _, future::join_all, stream};
use tokio::time::timeout;

use super::{
    AT_ONCE, Redis, lease,
    script::{Call, SCRIPTS},
};

/// How many times [`LIST_EXAMINES`] entries in a row may belong to no election before a partition is given up.
const STRANGE: usize = 16;
/// How many leases that the index script could not return are read at once.
const READS: usize = 8;
/// How many causes the log reports.
const CAUSES: usize = 3;

/// The results of some partitions.
#[derive(Default)]
struct Listed<P> {
    pages: Vec<P>,
    errors: Vec<NodeError>,
}

/// A page that may lack something.
trait Partial: Default {
    /// Takes the reason why it does.
    fn cause(&mut self) -> Option<String>;
}

impl Partial for Page {
    fn cause(&mut self) -> Option<String> {
        self.incomplete.take()
    }
}

impl Partial for Kinds {
    fn cause(&mut self) -> Option<String> {
        self.incomplete.take()
    }
}

/// What the list script replies.
struct Reply {
    /// The last examined path, if there may be more after it.
    last: Option<Vec<u8>>,
    /// How many entries had no lease.
    skipped: usize,
    /// Elections with their leases. An election without one may have its lease elsewhere, or one that cannot be read.
    elections: Vec<(ElectionId, Option<Lease>)>,
}

impl Redis {
    /// See [`LeaseNode::list`](election_core::lease::LeaseNode::list).
    pub(super) async fn list_partitions(
        &self,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let partitions = self.keys.len();
        // Elections spread evenly, so a few of each partition make up a page.
        let few = (8 * limit).div_ceil(partitions).max(4).min(limit);
        let listed =
            self.of_all_partitions(|partition| self.list_partition(partition, kind, after, few));
        let (pages, incomplete) = listed.await?;
        // An election is in one partition only.
        let pages: Vec<_> = pages.into_iter().map(|page| (0, page)).collect();
        Ok(Page {
            incomplete,
            ..merge(&pages, Electorate::of(Nodes::one(0)), limit).page
        })
    }

    /// See [`LeaseNode::kinds`](election_core::lease::LeaseNode::kinds).
    pub(super) async fn kinds_of_partitions(
        &self,
        after: Option<&Kind>,
        limit: usize,
    ) -> Result<Kinds, NodeError> {
        let listed = self.of_all_partitions(|partition| self.kinds_of(partition, after, limit));
        let (pages, incomplete) = listed.await?;
        Ok(Kinds {
            incomplete,
            ..merge_kinds(pages, limit)
        })
    }

    /// Lists every partition, each server's with its share of the calls at once. Returns the pages, and why something
    /// may be missing from them.
    async fn of_all_partitions<P: Partial, F: Future<Output = Result<P, NodeError>>>(
        &self,
        list: impl Fn(u16) -> F,
    ) -> Result<(Vec<P>, Option<String>), NodeError> {
        let mut servers: BTreeMap<Option<String>, Vec<u16>> = BTreeMap::new();
        for (partition, _) in (0..).zip(&self.keys) {
            let server = self.connections.server(partition);
            servers.entry(server).or_default().push(partition);
        }
        // Each server has its share, so that a stopped one takes none of the others' share.
        let at_once = (AT_ONCE / servers.len()).max(4);
        let listing = servers.into_iter().map(|(server, partitions)| {
            let pages = stream::iter(partitions).map(&list);
            self.list_server(server, pages.buffer_unordered(at_once))
        });
        let mut all = Listed::default();
        for listed in join_all(listing).await {
            all.pages.extend(listed.pages);
            all.errors.extend(listed.errors);
        }
        if all.pages.is_empty() {
            let nothing = || NodeError::unknown(format!("{}: it listed nothing", self.name));
            return Err(all.errors.into_iter().next().unwrap_or_else(nothing));
        }
        let why = all.incomplete(self.keys.len());
        Ok((all.pages, why))
    }

    /// Lists the partitions of one server. Stops waiting for a server that does not reply for too long.
    async fn list_server<P: Partial>(
        &self,
        server: Option<String>,
        pages: impl Stream<Item = Result<P, NodeError>>,
    ) -> Listed<P> {
        // The other servers' partitions must be under way before the node's time is over. With only one partition,
        // nothing else waits.
        let within = match self.keys.len() {
            1 => self.limit,
            _ => self.limit / 2,
        };
        let mut listed = Listed::default();
        let mut pages = pin!(pages);
        loop {
            match timeout(within, pages.next()).await {
                Ok(Some(Ok(page))) => listed.pages.push(page),
                Ok(Some(Err(error))) => listed.errors.push(error),
                Ok(None) => break,
                Err(_) => {
                    let server = server.as_deref().unwrap_or(&self.name);
                    let error = format!("{server}: no answer within {within:?}");
                    listed.errors.push(NodeError::Unknown(error));
                    break;
                }
            }
        }
        listed
    }

    async fn list_partition(
        &self,
        partition: u16,
        kind: Option<&Kind>,
        after: Option<&ElectionId>,
        limit: usize,
    ) -> Result<Page, NodeError> {
        let keys = &self.keys[usize::from(partition)];
        let mut least = match (after, kind) {
            (Some(after), _) => format!("({}", after.path()).into_bytes(),
            (None, Some(kind)) => format!("[{}/", kind.as_str()).into_bytes(),
            (None, None) => b"-".to_vec(),
        };
        let greatest = kind.map_or_else(|| "+".to_owned(), |kind| format!("({}", kind.end()));
        for _ in 0..STRANGE {
            let call = Call::new(&SCRIPTS.list, [(&keys.index).into()])
                .arg(&least)
                .arg(&greatest)
                .arg(limit)
                .arg(LIST_EXAMINES)
                .arg(keys.lease_prefix());
            let reply: Vec<Vec<u8>> = self.connections.run(partition, &call).await?;
            let reply = Reply::parse(&reply).ok_or_else(|| self.unexpected("list", &reply))?;
            if reply.skipped > 0 {
                self.index.untidy(partition);
            }
            let Some(last) = reply.last else {
                return Ok(self.page(partition, reply.elections, None).await);
            };
            // An entry that belongs to no election cannot be the start of the next page.
            let next = election(&last);
            let next = next.or_else(|| Some(reply.elections.last()?.0.clone()));
            if next.is_some() {
                return Ok(self.page(partition, reply.elections, next).await);
            }
            least = [b"(", &last[..]].concat();
        }
        Ok(Page {
            incomplete: Some(format!(
                "{}: the index of partition {partition} has more than {} entries in a row that name no \
                 election: delete the key {}, and leaders write it anew as they extend",
                self.name,
                (STRANGE - 1) * LIST_EXAMINES,
                keys.index
            )),
            ..Page::default()
        })
    }

    async fn kinds_of(
        &self,
        partition: u16,
        after: Option<&Kind>,
        limit: usize,
    ) -> Result<Kinds, NodeError> {
        let keys = &self.keys[usize::from(partition)];
        let least = after.map_or_else(|| "-".to_owned(), |after| format!("[{}", after.end()));
        let call = Call::new(&SCRIPTS.kinds, [(&keys.index).into()])
            .arg(least)
            .arg(limit)
            .arg(KIND_EXAMINES)
            .arg(LIST_EXAMINES)
            .arg(keys.lease_prefix());
        let reply: Vec<Vec<u8>> = self.connections.run(partition, &call).await?;
        let unexpected = || self.unexpected("kinds", &reply);
        let [last, skipped, kinds @ ..] = &reply[..] else {
            return Err(unexpected());
        };
        if skipped != b"0" {
            self.index.untidy(partition);
        }
        // Other entries in the index name no election.
        let kind = |text: &Vec<u8>| Kind::new(str::from_utf8(text).ok()?).ok();
        Ok(Kinds {
            kinds: kinds.iter().filter_map(kind).collect(),
            next: match last.is_empty() {
                true => None,
                false => Some(kind(last).ok_or_else(unexpected)?),
            },
            incomplete: self.lacks(partition),
        })
    }

    /// Why elections of a partition may be missing although it replied, if any may.
    fn lacks(&self, partition: u16) -> Option<String> {
        self.index.lacks(partition).then(|| {
            format!(
                "{}: entries of the index of partition {partition} were lost; leaders put theirs back as they extend",
                self.name
            )
        })
    }

    /// Reads the leases that the list script could not return.
    async fn page(
        &self,
        partition: u16,
        elections: Vec<(ElectionId, Option<Lease>)>,
        next: Option<ElectionId>,
    ) -> Page {
        let mut page = Page {
            next,
            incomplete: self.lacks(partition),
            ..Page::default()
        };
        if elections.is_empty() {
            return page;
        }
        let mut leases = stream::iter(elections)
            .map(|(election, lease)| async {
                let lease = match lease {
                    Some(lease) => Ok(Reading::Held(lease)),
                    // Where the key is moving, the read is sent to its new server.
                    None => self.read(&election).await,
                };
                (election, lease)
            })
            .buffered(READS);
        while let Some((election, lease)) = leases.next().await {
            match lease {
                Ok(Reading::Held(lease)) => page.leases.push((election, lease)),
                Ok(Reading::Vacant(_)) => {}
                Ok(Reading::NotKnown | Reading::Unrecorded) => {
                    let error = format!("the server may have forgotten the lease of {election}");
                    page.incomplete.get_or_insert(error);
                }
                Err(error) => {
                    let error = format!("the lease of {election} cannot be read: {error}");
                    page.incomplete.get_or_insert(error);
                }
            }
        }
        page
    }
}

impl Reply {
    fn parse(reply: &[Vec<u8>]) -> Option<Self> {
        let [last, skipped, elections @ ..] = reply else {
            return None;
        };
        let elections = elections.iter().filter_map(|entry| {
            let line = entry.iter().position(|byte| *byte == b'\n')?;
            // Other entries in the index name no election.
            let election = election(&entry[..line])?;
            let held = str::from_utf8(&entry[line + 1..]).ok();
            Some((election, held.and_then(lease)))
        });
        Some(Self {
            last: (!last.is_empty()).then(|| last.clone()),
            skipped: str::from_utf8(skipped).ok()?.parse().ok()?,
            elections: elections.collect(),
        })
    }
}

fn election(path: &[u8]) -> Option<ElectionId> {
    ElectionId::from_path(str::from_utf8(path).ok()?).ok()
}

impl<P: Partial> Listed<P> {
    /// Why elections may be missing, if any may. Takes the reasons from the pages.
    fn incomplete(&mut self, partitions: usize) -> Option<String> {
        let lacking = partitions - self.pages.len();
        let in_pages = self.pages.iter_mut().filter_map(Partial::cause);
        let errors = self.errors.iter().map(ToString::to_string);
        let mut causes: Vec<_> = errors.chain(in_pages).collect();
        if lacking == 0 && causes.is_empty() {
            return None;
        }
        causes.sort_unstable();
        causes.dedup();
        causes.truncate(CAUSES);
        let causes = causes.join("; ");
        Some(match lacking {
            0 => format!("a listing may lack elections: {causes}"),
            _ => format!("a listing lacks {lacking} of {partitions} partitions: {causes}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(entries: &[&[u8]]) -> Reply {
        let reply: Vec<Vec<u8>> = entries.iter().map(|entry| entry.to_vec()).collect();
        Reply::parse(&reply).expect("a reply")
    }

    #[test]
    fn one_bad_entry_does_not_fail_a_page() {
        let reply = parsed(&[
            b"k/\xff",
            b"3",
            b"k/a\n7\n1\n900\nx\nv",
            b"k/b\n?",
            b"k/c\nseven\n1\n900\nx\n",
            b"k/d\n7\n1\n-1\nx\n",
            b"k/e/f\n7\n1\n900\nx\n",
            b"k/\n7\n1\n900\nx\n",
            b"k/\xff\n7\n1\n900\nx\n",
            b"k/g\n7\n1\n900\nx\n\xff",
            b"k/h\n7\n1\n900\nx\nline\nline",
        ]);
        assert_eq!(reply.last.as_deref(), Some(&b"k/\xff"[..]));
        assert_eq!(reply.skipped, 3);
        let elections = reply.elections.iter();
        let found: Vec<_> = elections
            .map(|(election, lease)| (election.name(), lease.is_some()))
            .collect();
        // The others name no election.
        let expected = [
            ("a", true),
            ("b", false),
            ("c", false),
            ("d", false),
            ("g", false),
            ("h", true),
        ];
        assert_eq!(found, expected);
        assert!(Reply::parse(&[]).is_none() && parsed(&[b"", b"0"]).last.is_none());
    }
}
