//! `elect`: leads without a command.

use std::{net::SocketAddr, time::Duration};

use clap::ArgMatches;
use election_agent_client::Term;
use serde::Serialize;
use tokio::select;

use crate::{
    failure::Failure,
    http::Sidecar,
    leading::{Candidacy, Held, instant},
    output::{complain, print, print_json, printable},
    run::{
        signals::Signals,
        supervisor::{Change, Lease as _},
    },
};

/// The pause before another campaign.
const PAUSE: Duration = Duration::from_secs(1);

/// What is printed.
#[derive(Debug, Serialize)]
struct Line<'a> {
    event: &'static str,
    kind: &'a str,
    election: &'a str,
    candidate: &'a str,
    token: u64,
    /// CLOCK_BOOTTIME, in ns.
    valid_until: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// Leads until a signal, or until the leadership is lost.
pub(crate) async fn elect(given: &ArgMatches) -> Result<u8, Failure> {
    let http = given.get_one::<SocketAddr>("http").copied();
    let again = given.get_flag("again") || http.is_some();
    let json = given.get_flag("json");
    let candidacy = Candidacy::new(given, again)?;
    let mut signals = Signals::new().map_err(Failure::own)?;
    let sidecar = match http {
        Some(address) => Some(Sidecar::listen(address, &candidacy).await?),
        None => None,
    };
    select! {
        _ = signals.end() => return Ok(0),
        reached = candidacy.reach() => reached?,
    }
    let mut first = true;
    loop {
        let held = select! {
            _ = signals.end() => return Ok(0),
            held = candidacy.campaign() => held,
        };
        let held = match held {
            Ok(held) => held,
            // An error of the first campaign stays; a later one may pass.
            Err(failure) if first || !again || failure.code() == Failure::NOT_ELECTED => {
                return Err(failure);
            }
            Err(failure) => {
                complain(format_args!("{failure}"));
                select! {
                    _ = signals.end() => return Ok(0),
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
        };
        first = false;
        if let Some(sidecar) = &sidecar {
            sidecar.leads(Some(held.term().clone()));
        }
        let ended = hold(&held, &mut signals, json).await;
        if let Some(sidecar) = &sidecar {
            sidecar.leads(None);
        }
        let term = held.term().clone();
        // Also when the output has failed: no work runs under the term any more.
        held.resign(term.check().is_err()).await;
        match ended? {
            None => {
                say("resigned", &term, json, None)?;
                return Ok(0);
            }
            Some(why) if !again => {
                return Err(Failure::new(
                    Failure::LOST,
                    format!("the leadership is lost: {why}"),
                ));
            }
            Some(_) => {}
        }
    }
}

/// Leads until a signal (`None`), or until the leadership is lost for a reason.
async fn hold(held: &Held, signals: &mut Signals, json: bool) -> Result<Option<String>, Failure> {
    let mut lease = held.lease();
    let term = held.term();
    say("elected", term, json, None)?;
    loop {
        let change = select! {
            _ = signals.end() => return Ok(None),
            change = lease.changed() => change,
        };
        match change {
            Change::Extended if json => say("extended", term, json, None)?,
            Change::Extended => {}
            Change::Lost(why) => {
                say("lost", term, json, Some(&why))?;
                return Ok(Some(why));
            }
        }
    }
}

fn say(event: &'static str, term: &Term, json: bool, reason: Option<&str>) -> Result<(), Failure> {
    if json {
        return print_json(&Line {
            event,
            kind: term.kind(),
            election: term.election(),
            candidate: term.candidate(),
            token: term.token(),
            valid_until: instant(term.valid_until()).nanos(),
            reason,
        });
    }
    let reason = reason.map(|why| format!(": {why}")).unwrap_or_default();
    print(printable(format!(
        "{event} {}/{} as {}, token {}{reason}",
        term.kind(),
        term.election(),
        term.candidate(),
        term.token(),
    )))
}
