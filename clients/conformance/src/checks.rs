//! What must be true of a record. Each check says what it has found.

use std::collections::BTreeMap;

use crate::{
    protocol::{Event, Name},
    record::{Call, Record, What},
};

/// A check of a record: `Err` with what is wrong.
pub type Check = fn(&Record) -> Result<(), String>;

/// A check and its name.
pub type Named = (&'static str, Check);

/// The program that is at the centre of most scenarios.
const A: &str = "a";
/// The candidate that waits for its election.
const B: &str = "b";
/// The program that observes.
const O: &str = "o";

const MS: u64 = 1_000_000;

/// A request that was sent before another may arrive after it by another connection.
const OVERTAKING: u64 = 20 * MS;

/// What the driver notes when ways that were silent pass everything on again, with what was sent meanwhile.
pub const OPENS: &str = "silent ways are good again";

/// How long after that such a request may arrive.
const HELD_BACK: u64 = 300 * MS;

/// What is true of every scenario.
pub const SAFETY: [Named; 6] = [
    ("acts_within_validity", acts_within_validity),
    ("validity_is_as_promised", validity_is_as_promised),
    ("acts_alone", acts_alone),
    ("no_extension_after_resign", no_extension_after_resign),
    ("body_ends_before_resign", body_ends_before_resign),
    ("tokens_are_named", tokens_are_named),
];

fn ms(later: u64, earlier: u64) -> f64 {
    (later as f64 - earlier as f64) / 1e6
}

fn first<'a>(record: &'a Record, program: &'a str, name: Name) -> Result<&'a Event, String> {
    let found = record.of(program, name).next();
    found.ok_or_else(|| format!("{program} does not report {name:?}"))
}

/// Nothing acts after the time until which the library says that it may.
///
/// # Errors
///
/// What acts too late.
pub fn acts_within_validity(record: &Record) -> Result<(), String> {
    for event in record
        .events
        .iter()
        .filter(|event| event.event == Name::Acting)
    {
        let until = event.valid_until.unwrap_or(0);
        if event.at >= until {
            return Err(format!(
                "{} acts {:.1} ms after its time",
                event.program,
                ms(event.at, until)
            ));
        }
    }
    Ok(())
}

/// The time until which a library says that it may act is not later than what agents promised, counted from when the
/// request arrived, which is after it was sent. Only where a forwarder has seen the promises.
///
/// # Errors
///
/// What is stretched.
pub fn validity_is_as_promised(record: &Record) -> Result<(), String> {
    if record.promises.is_empty() {
        return Ok(());
    }
    let mut token = BTreeMap::new();
    for event in &record.events {
        let leadership = (event.program.as_str(), event.id);
        if let Some(known) = event.token {
            token.insert(leadership, known);
        }
        let (Some(until), Some(token)) = (event.valid_until, token.get(&leadership)) else {
            continue;
        };
        let promised = record
            .promises
            .iter()
            .filter(|promise| promise.token == *token && promise.at <= event.at)
            .map(|promise| promise.until)
            .max()
            .unwrap_or(0);
        if until > promised {
            return Err(format!(
                "{} counts on {:.1} ms more than it was promised with token {token}",
                event.program,
                ms(until, promised)
            ));
        }
    }
    Ok(())
}

/// Nothing acts under a token when another candidate has been elected with a larger one: which it was at the latest when
/// it was told so, or the witness was. (When the agent says that it was elected is when the agent asked its lease nodes:
/// one that was stopped meanwhile has granted it later.)
///
/// # Errors
///
/// What acts beside another leader.
pub fn acts_alone(record: &Record) -> Result<(), String> {
    let mut elected: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
    let seen = record.seen.iter().filter_map(|seen| {
        let leader = seen.leader.as_deref()?;
        Some((seen.token, leader, seen.at))
    });
    let promises = record.promises.iter();
    let promised = promises.map(|promise| (promise.token, promise.candidate.as_str(), promise.at));
    for (token, leader, at) in seen.chain(promised) {
        let first = elected.entry(token).or_insert((leader, at));
        first.1 = first.1.min(at);
    }
    for event in record
        .events
        .iter()
        .filter(|event| event.event == Name::Acting)
    {
        let token = event.token.unwrap_or(0);
        for (other, (leader, at)) in elected.range(token + 1..) {
            if event.at > *at && *leader != event.program {
                return Err(format!(
                    "{} acts with token {token} {:.1} ms after {leader} was elected with {other}",
                    event.program,
                    ms(event.at, *at)
                ));
            }
        }
    }
    Ok(())
}

/// Whether a request may have been sent long before it arrived.
fn was_held_back(record: &Record, call: &Call) -> bool {
    let mut deeds = record.deeds.iter().filter(|(_, deed)| *deed == OPENS);
    deeds.any(|(at, _)| (*at..*at + HELD_BACK).contains(&call.at))
}

/// A term that was given up is not extended.
///
/// # Errors
///
/// What is extended.
pub fn no_extension_after_resign(record: &Record) -> Result<(), String> {
    for resign in record.calls.iter().filter(|call| call.what == What::Resign) {
        let late = record.calls.iter().find(|call| {
            call.what == What::Extend
                && call.token == resign.token
                && call.at > resign.at + OVERTAKING
                && !was_held_back(record, call)
        });
        if let Some(late) = late {
            return Err(format!(
                "{} extends token {} {:.1} ms after it has resigned",
                late.candidate,
                late.token,
                ms(late.at, resign.at)
            ));
        }
    }
    Ok(())
}

/// What extends a term or gives it up names its token: otherwise it does so with that of another process of this name.
///
/// # Errors
///
/// Who names none.
pub fn tokens_are_named(record: &Record) -> Result<(), String> {
    let changes = |call: &&Call| matches!(call.what, What::Extend | What::Resign);
    let nameless = record
        .calls
        .iter()
        .filter(changes)
        .find(|call| call.token == 0);
    match nameless {
        None => Ok(()),
        Some(call) => Err(format!(
            "{} asks for {:?} without a token",
            call.candidate, call.what
        )),
    }
}

/// A body under which a term is given up has ended before.
///
/// # Errors
///
/// Which body runs.
pub fn body_ends_before_resign(record: &Record) -> Result<(), String> {
    for resign in record.calls.iter().filter(|call| call.what == What::Resign) {
        let led = record
            .events
            .iter()
            .find(|event| event.event == Name::Leading && event.token == Some(resign.token));
        let Some(led) = led else { continue };
        let ended = record
            .of(&led.program, Name::BodyEnded)
            .any(|event| event.id == led.id && event.at <= resign.at);
        if !ended {
            return Err(format!(
                "{} resigns with token {} while its body runs",
                led.program, resign.token
            ));
        }
    }
    Ok(())
}

/// The loss is reported before the time is over.
///
/// # Errors
///
/// It is not, or too late.
pub fn loss_is_reported_in_time(record: &Record) -> Result<(), String> {
    let lost = first(record, A, Name::Lost)?;
    let until = record.valid_until(A, lost.id, u64::MAX).unwrap_or(0);
    if lost.at > until {
        return Err(format!(
            "the loss is reported {:.1} ms after the end of the term",
            ms(lost.at, until)
        ));
    }
    Ok(())
}

/// A body that ends when it is told of the loss has ended before the time is over.
///
/// # Errors
///
/// It has not.
pub fn body_is_cancelled_in_time(record: &Record) -> Result<(), String> {
    let ended = first(record, A, Name::BodyEnded)?;
    let until = record.valid_until(A, ended.id, u64::MAX).unwrap_or(0);
    if ended.at > until {
        return Err(format!(
            "the body ends {:.1} ms after the end of the term",
            ms(ended.at, until)
        ));
    }
    Ok(())
}

/// The loss is reported, if late, because the program was stopped.
///
/// # Errors
///
/// It is not.
pub fn loss_is_reported(record: &Record) -> Result<(), String> {
    first(record, A, Name::Lost).map(|_| ())
}

/// Nothing is lost, and nothing fails.
///
/// # Errors
///
/// What is lost or fails.
pub fn nothing_is_lost(record: &Record) -> Result<(), String> {
    let bad = [Name::Lost, Name::Error];
    let found = record
        .events
        .iter()
        .find(|event| bad.contains(&event.event));
    found.map_or(Ok(()), |event| {
        let reason = event.reason.as_deref().unwrap_or_default();
        Err(format!(
            "{} reports {:?}: {reason}",
            event.program, event.event
        ))
    })
}

/// The term is extended after the fault.
///
/// # Errors
///
/// It is not.
pub fn is_renewed_after_the_fault(record: &Record) -> Result<(), String> {
    let fault = record.deed("fault").ok_or("setup: there was no fault")?;
    let renewed = record.of(A, Name::Renewed).any(|event| event.at > fault);
    if renewed {
        Ok(())
    } else {
        Err("the term is not extended after the fault".to_owned())
    }
}

/// The term is extended within a second of the agent's end.
///
/// # Errors
///
/// It takes longer.
pub fn fails_over_within_a_second(record: &Record) -> Result<(), String> {
    let fault = record.deed("fault").ok_or("setup: there was no fault")?;
    let renewed = record.of(A, Name::Renewed).find(|event| event.at > fault);
    let renewed = renewed.ok_or("the term is not extended by the other agent")?;
    if renewed.at - fault > 1_000 * MS {
        return Err(format!(
            "the next extension comes {:.0} ms after the agent's end",
            ms(renewed.at, fault)
        ));
    }
    Ok(())
}

/// The election has ended well: resigned at its end, and vacant for that reason.
///
/// # Errors
///
/// What is missing.
pub fn resigns_at_the_end(record: &Record) -> Result<(), String> {
    first(record, A, Name::BodyEnded)?;
    first(record, A, Name::Resigned)?;
    first(record, A, Name::Done)?;
    let resigned = record.seen.iter().any(|seen| seen.cause == "RESIGN");
    resigned
        .then_some(())
        .ok_or_else(|| "the agent does not say that the leader has resigned".to_owned())
}

/// It was extended at least twice before the body was let end.
///
/// # Errors
///
/// It was not.
pub fn is_renewed(record: &Record) -> Result<(), String> {
    match record.of(A, Name::Renewed).count() {
        2.. => Ok(()),
        times => Err(format!("the term was extended {times} times")),
    }
}

/// The candidate that waits is elected.
///
/// # Errors
///
/// It is not.
pub fn the_next_leads(record: &Record) -> Result<(), String> {
    first(record, B, Name::Leading).map(|_| ())
}

/// It is reported that the term could not be extended.
///
/// # Errors
///
/// It is not.
pub fn jeopardy_is_reported(record: &Record) -> Result<(), String> {
    first(record, A, Name::Jeopardy).map(|_| ())
}

/// An application that says that it is not alive is not led for.
///
/// # Errors
///
/// The term is extended all the same.
pub fn stops_to_extend_when_not_alive(record: &Record) -> Result<(), String> {
    let fault = record.deed("fault").ok_or("setup: there was no fault")?;
    // A question that was answered before may have been behind an extension that is under way.
    let late = fault + 500 * MS;
    let extends = |call: &&Call| {
        matches!(call.what, What::Extend | What::Ping) && call.candidate == A && call.at > late
    };
    match record.calls.iter().find(extends) {
        None => Ok(()),
        Some(call) => Err(format!(
            "the term is extended {:.0} ms after the application said that it is not alive",
            ms(call.at, fault)
        )),
    }
}

/// The body is told of the loss, and the term is extended for it all the same.
///
/// # Errors
///
/// It is not.
pub fn keeps_the_term_for_the_grace(record: &Record) -> Result<(), String> {
    let lost = first(record, A, Name::Lost)?;
    let extended = record.promises.iter().any(|promise| promise.at > lost.at);
    extended.then_some(()).ok_or_else(|| {
        "the term is not extended while a body runs that was told of the loss".to_owned()
    })
}

/// After the grace the term is not extended any more.
///
/// # Errors
///
/// It is.
pub fn lets_the_term_lapse_after_the_grace(record: &Record) -> Result<(), String> {
    let lost = first(record, A, Name::Lost)?;
    let over = lost.at + crate::scenarios::GRACE_MS * MS + 700 * MS;
    let extends = |call: &&Call| matches!(call.what, What::Extend | What::Ping) && call.at > over;
    match record.calls.iter().find(extends) {
        None => Ok(()),
        Some(call) => Err(format!(
            "the term is extended {:.0} ms after the loss",
            ms(call.at, lost.at)
        )),
    }
}

/// The same name of the attempt in repetitions, and another in another attempt; and one grant for the first.
///
/// # Errors
///
/// Which attempts have which names.
pub fn request_ids_name_attempts(record: &Record) -> Result<(), String> {
    let first = first(record, A, Name::Leading)?;
    let ids = |after: u64, before: u64| -> Vec<&str> {
        let calls = record.calls.iter().filter(|call| {
            call.what == What::Campaign
                && call.candidate == A
                && call.at > after
                && call.at < before
        });
        calls.map(|call| call.request_id.as_str()).collect()
    };
    let one = ids(0, first.at);
    let two = ids(first.at, u64::MAX);
    if one.len() < 2 {
        return Err("the campaign whose answer was lost is not repeated".to_owned());
    }
    if one.iter().any(|id| id.is_empty() || *id != one[0]) {
        return Err(format!("repetitions have other request ids: {one:?}"));
    }
    if two.is_empty() {
        return Err("setup: there is no other attempt".to_owned());
    }
    if two.contains(&one[0]) {
        return Err("another attempt has the same request id".to_owned());
    }
    Ok(())
}

/// The observer tells held and vacant in their order, with causes.
///
/// # Errors
///
/// What it tells instead.
pub fn states_are_told_in_order(record: &Record) -> Result<(), String> {
    let mut told: Vec<(&str, &str, u64, &str)> = Vec::new();
    for event in record.of(O, Name::State) {
        let phase = event.phase.as_deref().unwrap_or_default();
        let cause = event.cause.as_deref().unwrap_or_default();
        let token = event.token.unwrap_or(0);
        let leader = event.leader.as_deref().unwrap_or_default();
        // Told again when the observer has connected again.
        if told
            .last()
            .is_none_or(|last| (last.0, last.2) != (phase, token))
        {
            told.push((phase, cause, token, leader));
        }
    }
    let short: Vec<_> = told.iter().map(|told| (told.0, told.1, told.3)).collect();
    let expected = [
        ("vacant", "present", ""),
        ("held", "campaign", "x"),
        ("vacant", "resign", ""),
        ("held", "campaign", "y"),
        ("vacant", "expiry", ""),
    ];
    if short != expected {
        return Err(format!("the observer tells {told:?}"));
    }
    let tokens: Vec<_> = told.iter().map(|told| told.2).collect();
    if tokens[1] != tokens[2] || tokens[3] != tokens[4] || tokens[1] >= tokens[3] {
        return Err(format!("the tokens are {tokens:?}"));
    }
    first(record, O, Name::Synced).map(|_| ())
}

/// While no quorum answers, nobody is told that the election is vacant.
///
/// # Errors
///
/// It is told.
pub fn no_vacancy_is_guessed(record: &Record) -> Result<(), String> {
    let fault = record.deed("fault").ok_or("setup: there was no fault")?;
    let healed = record.deed("healed").unwrap_or(u64::MAX);
    let vacant = record.of(O, Name::State).find(|event| {
        event.at > fault && event.at < healed && event.phase.as_deref() == Some("vacant")
    });
    match vacant {
        None => Ok(()),
        Some(event) => Err(format!(
            "the election is reported vacant {:.0} ms after the quorum was lost",
            ms(event.at, fault)
        )),
    }
}

/// While no quorum answers, the observer says that its states may be old; and afterwards that they are not.
///
/// # Errors
///
/// It does not.
pub fn uncertainty_is_reported(record: &Record) -> Result<(), String> {
    let certain: Vec<_> = record
        .of(O, Name::Certainty)
        .filter_map(|event| event.certain)
        .collect();
    if !certain.contains(&false) {
        return Err("the observer does not say that its states may be old".to_owned());
    }
    match certain.last() {
        Some(true) => Ok(()),
        _ => Err("the observer does not say that its states are good again".to_owned()),
    }
}

/// An extension that is refused is reported, and is no loss before the time is over.
///
/// # Errors
///
/// It is a loss, or is not reported.
pub fn a_refusal_is_no_loss(record: &Record) -> Result<(), String> {
    first(record, A, Name::Refused)?;
    let lost = first(record, A, Name::Lost)?;
    let until = record.valid_until(A, lost.id, u64::MAX).unwrap_or(0);
    if lost.reason.as_deref() != Some("term_over") {
        return Err(format!("the loss is reported as {:?}", lost.reason));
    }
    // The margin of 3 s is 300 ms.
    if lost.at + 350 * MS < until {
        return Err(format!(
            "the loss is reported {:.0} ms before the end of the term",
            ms(until, lost.at)
        ));
    }
    Ok(())
}

/// Who is told that another process has campaigned under its name is told so at the next extension.
///
/// # Errors
///
/// It is told something else, or late.
pub fn is_told_of_its_fencing(record: &Record) -> Result<(), String> {
    let fault = record.deed("fault").ok_or("setup: there was no fault")?;
    let lost = first(record, A, Name::Lost)?;
    if lost.reason.as_deref() != Some("stale_token") {
        return Err(format!("the loss is reported as {:?}", lost.reason));
    }
    if lost.at < fault {
        return Err("the loss is reported before it happened".to_owned());
    }
    Ok(())
}

/// Another leader is no unknown outcome, and an unknown outcome says nothing about another leader.
///
/// # Errors
///
/// What is reported.
pub fn unknown_is_not_denied(record: &Record) -> Result<(), String> {
    let held = first(record, "held", Name::Error)?;
    if held.reason.as_deref() != Some("not_elected") {
        return Err(format!(
            "another leads, which is reported as {:?}",
            held.reason
        ));
    }
    let unknown = first(record, "unknown", Name::Error)?;
    match unknown.reason.as_deref() {
        Some("not_known" | "unreachable") => Ok(()),
        other => Err(format!("no agent answers, which is reported as {other:?}")),
    }
}

/// The present token is current, larger ones were not granted, and after the resignation none is current.
///
/// # Errors
///
/// What is answered instead.
pub fn tokens_are_verified(record: &Record) -> Result<(), String> {
    let answers: Vec<_> = record
        .of("v", Name::Verified)
        .map(|event| (event.current.unwrap_or(false), event.reason.as_deref()))
        .collect();
    let expected = [
        (true, None),
        (false, Some("not_granted")),
        (false, Some("no_term")),
    ];
    if answers == expected {
        Ok(())
    } else {
        Err(format!("the answers are {answers:?}"))
    }
}

/// The client has changed its connection several times.
///
/// # Errors
///
/// It has not: the scenario is none.
pub fn connections_have_aged(record: &Record) -> Result<(), String> {
    let count = record
        .numbers
        .iter()
        .find(|(name, _)| *name == "connections");
    match count {
        Some((_, 3..)) => Ok(()),
        other => Err(format!("setup: {other:?}")),
    }
}

/// A term whose body ended while nothing passed is given up when something passes again, or else lapses: and it is not
/// extended for longer than requests are under way.
///
/// # Errors
///
/// It is.
pub fn gives_up_what_was_cut_off(record: &Record) -> Result<(), String> {
    first(record, A, Name::BodyEnded)?;
    let ended = record.deed("fault").ok_or("setup: there was no fault")?;
    let vacant = record
        .seen
        .iter()
        .find(|seen| seen.at > ended && seen.leader.is_none());
    vacant.ok_or("the election is still held")?;
    // What was sent before the body ended may arrive when the way is open again, 200 ms later.
    let late = record
        .calls
        .iter()
        .find(|call| matches!(call.what, What::Extend | What::Ping) && call.at > ended + 600 * MS);
    match late {
        None => Ok(()),
        Some(call) => Err(format!(
            "the term is extended {:.0} ms after the body was let end",
            ms(call.at, ended)
        )),
    }
}

/// Of two leaderships of a program, the one that is lost is, and the other goes on.
///
/// # Errors
///
/// What is lost.
pub fn one_loss_is_not_anothers(record: &Record) -> Result<(), String> {
    let fault = record.deed("fault").ok_or("setup: there was no fault")?;
    let lost: Vec<_> = record.of(A, Name::Lost).collect();
    let reasons: Vec<_> = lost
        .iter()
        .map(|event| (event.id, event.reason.as_deref().unwrap_or_default()))
        .collect();
    if reasons != [(2, "stale_token")] {
        return Err(format!("the losses are {reasons:?}"));
    }
    let renewed = record.of(A, Name::Renewed);
    let renewed = renewed.filter(|event| event.id == 1 && event.at > fault);
    if renewed.count() == 0 {
        return Err("the other term is not extended any more".to_owned());
    }
    let done = record.of(A, Name::Done).any(|event| event.id == 1);
    done.then_some(())
        .ok_or_else(|| "the other leadership does not end well".to_owned())
}

/// It is elected.
///
/// # Errors
///
/// It is not.
pub fn is_elected(record: &Record) -> Result<(), String> {
    first(record, A, Name::Leading).map(|_| ())
}

/// The observer tells that another leads.
///
/// # Errors
///
/// It does not.
pub fn the_change_is_told(record: &Record) -> Result<(), String> {
    let mut states = record.of(O, Name::State);
    let held = states.any(|event| event.leader.as_deref() == Some(A));
    held.then_some(())
        .ok_or_else(|| "the observer does not tell that another leads".to_owned())
}

/// A candidate that was stopped is passed over, and is elected when it can take the election up.
///
/// # Errors
///
/// It is not.
pub fn the_stopped_is_passed_over(record: &Record) -> Result<(), String> {
    let next = first(record, "c", Name::Leading)?;
    let last = first(record, B, Name::Leading)?;
    if last.at < next.at || last.token <= next.token {
        return Err("the candidate that was stopped leads first".to_owned());
    }
    Ok(())
}

/// When the faults are over, the election is held, and the term is extended.
///
/// # Errors
///
/// It is not.
pub fn somebody_leads_after_all(record: &Record) -> Result<(), String> {
    let healed = record.deed("healed").ok_or("setup: the faults go on")?;
    let renewed = record.events.iter().any(|event| {
        // What an attempt of before has left may take a term to end.
        event.event == Name::Renewed && event.at > healed
    });
    renewed
        .then_some(())
        .ok_or_else(|| "nobody leads when the faults are over".to_owned())
}
