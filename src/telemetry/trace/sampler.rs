//! Sampling: decides by a request's headers whether it is recorded, before anything is built for it.

use std::str::FromStr as _;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const TRACE_PARENT: &str = "traceparent";
const TRACE_STATE: &str = "tracestate";
/// The length of [`TRACE_PARENT`] in version 00: the version, the ids and the flags, with dashes between.
const LENGTH: usize = 55;

/// Decides whether a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Whether the caller's sampling decision is used, if it has made one.
    pub parent_based: bool,
    /// The decision otherwise.
    pub root: Root,
}

/// A decision without regard to the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// Records everything.
    Always,
    /// Records nothing.
    Never,
    /// Records traces whose id, in its last 63 bits, is below this value: the same traces as other SDKs.
    Below(u64),
}

impl Root {
    /// Records this share of all traces (0 to 1).
    #[must_use]
    pub fn ratio(ratio: f64) -> Self {
        match ratio {
            1.0.. => Self::Always,
            // Precise enough: a double has 53 bits.
            _ => Self::Below((ratio.max(0.0) * (1_u64 << 63) as f64) as u64),
        }
    }

    fn samples(self, id: impl FnOnce() -> u64) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Below(bound) => id() >> 1 < bound,
        }
    }
}

impl Sampler {
    /// Returns whether a request with this parent is recorded. A trace that begins here uses a random number
    /// instead of its id, as no other process has to make the same decision.
    #[must_use]
    pub fn samples(self, parent: Option<&Parent>) -> bool {
        match parent {
            Some(parent) if self.parent_based => parent.is_sampled(),
            Some(parent) => self.root.samples(|| {
                let bytes = parent.trace.to_bytes();
                bytes[8..]
                    .iter()
                    .fold(0, |id, byte| id << 8 | u64::from(*byte))
            }),
            None => self.root.samples(|| fastrand::u64(..)),
        }
    }
}

/// The caller's span, parsed from [W3C Trace Context](https://www.w3.org/TR/trace-context/) headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    trace: TraceId,
    span: SpanId,
    flags: u8,
}

impl Parent {
    /// Parses the parent from the headers; `None` if the header is missing, repeated or invalid.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACE_PARENT).iter();
        let parent = parents.next()?;
        match parents.next() {
            None => Self::parse(parent.as_bytes()),
            Some(_) => None,
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(LENGTH)?;
        let part = |from, to| known.get(from..to).and_then(|digits: &[u8]| hex(digits));
        let version = part(0, 2)?;
        let whole = match version {
            0 => more.is_empty(),
            // Reserved.
            0xff => false,
            // Later versions may add to what this one has.
            _ => more.is_empty() || more[0] == b'-',
        };
        let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let parent = Self {
            trace: TraceId::from(part(3, 35)?),
            span: SpanId::from(u64::try_from(part(36, 52)?).ok()?),
            flags: u8::try_from(part(53, 55)?).ok()?,
        };
        let valid = parent.trace != TraceId::INVALID && parent.span != SpanId::INVALID;
        (whole && dashes && valid).then_some(parent)
    }

    /// Returns whether the caller records its span.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The parent as a span context, with the trace state of other systems from these headers.
    #[must_use]
    pub fn context(&self, headers: &HeaderMap) -> SpanContext {
        let state: Vec<_> = headers
            .get_all(TRACE_STATE)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .collect();
        // The specification requires that an invalid state is dropped.
        let state = TraceState::from_str(&state.join(",")).unwrap_or_default();
        SpanContext::new(
            self.trace,
            self.span,
            TraceFlags::new(self.flags),
            true,
            state,
        )
    }
}

/// Parses a number of up to 32 hexadecimal digits, in lower case only.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    fn parent(text: &str) -> Option<Parent> {
        Parent::parse(text.as_bytes())
    }

    #[test]
    fn a_parent_is_read_as_the_specification_says() {
        let read = parent(SAMPLED).expect("valid");
        assert_eq!(read.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(read.span.to_string(), "b7ad6b7169203331");
        assert!(read.is_sampled());
        assert!(!parent(UNSAMPLED).expect("valid").is_sampled());
        let later = format!("cc{}-what-comes-later", &SAMPLED[2..]);
        assert_eq!(parent(&later), Some(read));
    }

    #[test]
    fn what_is_no_parent_is_taken_for_none() {
        for wrong in [
            "",
            "00",
            &SAMPLED[..54],
            &format!("{SAMPLED}-x"),
            &format!("{SAMPLED}0"),
            &format!("cc{}x", &SAMPLED[2..]),
            &format!("ff{}", &SAMPLED[2..]),
            &SAMPLED.to_ascii_uppercase(),
            &SAMPLED.replace('-', "_"),
            &SAMPLED.replace("af7", "xyz"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(parent(wrong), None, "{wrong}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(Parent::of(&headers), None);
        headers.append(TRACE_PARENT, HeaderValue::from_static(SAMPLED));
        assert!(Parent::of(&headers).is_some());
        headers.append(TRACE_PARENT, HeaderValue::from_static(SAMPLED));
        assert_eq!(Parent::of(&headers), None, "two are none");
    }

    #[test]
    fn the_state_of_others_is_kept_and_a_broken_one_dropped() {
        let parent = parent(SAMPLED).expect("valid");
        let mut headers = HeaderMap::new();
        headers.append(TRACE_STATE, HeaderValue::from_static("a=1"));
        headers.append(TRACE_STATE, HeaderValue::from_static("b=2"));
        assert_eq!(parent.context(&headers).trace_state().header(), "a=1,b=2");
        headers.append(TRACE_STATE, HeaderValue::from_static("broken"));
        let context = parent.context(&headers);
        assert_eq!(context.trace_state().header(), "");
        assert!(context.is_valid() && context.is_remote() && context.is_sampled());
    }

    #[test]
    fn a_parents_decision_is_taken_by_samplers_that_are_based_on_it() {
        let (yes, no) = (parent(SAMPLED), parent(UNSAMPLED));
        for root in [Root::Always, Root::Never, Root::ratio(0.5)] {
            let sampler = Sampler {
                parent_based: true,
                root,
            };
            assert!(sampler.samples(yes.as_ref()), "{root:?}");
            assert!(!sampler.samples(no.as_ref()), "{root:?}");
            let sampler = Sampler {
                parent_based: false,
                root,
            };
            assert_eq!(sampler.samples(yes.as_ref()), sampler.samples(no.as_ref()));
        }
    }

    #[test]
    fn a_ratio_records_about_that_part_and_its_ends_none_and_all() {
        let of = |ratio| {
            let sampler = Sampler {
                parent_based: true,
                root: Root::ratio(ratio),
            };
            (0..100_000).filter(|_| sampler.samples(None)).count()
        };
        assert_eq!((of(0.0), of(1.0)), (0, 100_000));
        // Six standard deviations to both sides.
        assert!((811..1_189).contains(&of(0.01)), "{}", of(0.01));
    }

    #[test]
    fn the_same_traces_are_recorded_as_by_other_samplers_of_the_ratio() {
        use opentelemetry::trace::SpanKind;
        use opentelemetry_sdk::trace::{Sampler as Theirs, SamplingDecision, ShouldSample as _};
        for _ in 0..1_000 {
            let parent = Parent {
                trace: TraceId::from(fastrand::u128(1..)),
                span: SpanId::from(1),
                flags: 0,
            };
            let ratio = fastrand::f64();
            let theirs = Theirs::TraceIdRatioBased(ratio).should_sample(
                None,
                parent.trace,
                "",
                &SpanKind::Server,
                &[],
                &[],
            );
            let ours = Sampler {
                parent_based: false,
                root: Root::ratio(ratio),
            };
            let recorded = theirs.decision == SamplingDecision::RecordAndSample;
            assert_eq!(ours.samples(Some(&parent)), recorded, "{ratio} {parent:?}");
        }
    }
}
