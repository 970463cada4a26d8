//! Distributed traces: W3C Trace Context in and out, and spans for the sampled ones.
//!
//! A request's context is received or begun when its header is read ([`Tracer::receive`]), sent on
//! with a span of the proxy's own ([`TraceContext::apply`]), and made a span only when the request
//! has ended and only when it is sampled, so that what is not sampled costs three headers.

mod export;
mod random;
mod span;
mod traceparent;
mod tracestate;

use std::cell::RefCell;
use std::fmt;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

pub(crate) use export::{SpanExporting, SpanQueue, TraceResource, start as start_export};
pub(super) use span::{connection_span, request_span};
pub(crate) use traceparent::Parent as TraceParent;

use random::Random;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bit 0 of `trace-flags`.
const SAMPLED: u8 = 1;

/// Where a request or connection is in its trace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// The trace; never all zeros.
    pub(crate) trace_id: [u8; 16],
    /// The proxy's own span; never all zeros.
    pub(crate) span_id: [u8; 8],
    /// The span that was received; none where the proxy began the trace.
    pub(crate) parent_id: Option<[u8; 8]>,
    /// Whether a span is made of this, here and by those who are called.
    pub(crate) sampled: bool,
    /// Whether a `tracestate` that was received goes on.
    keep_tracestate: bool,
}

impl TraceContext {
    /// Writes the context into the header of the request that is sent on.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        let flags = if self.sampled { SAMPLED } else { 0 };
        let text = traceparent::format(&self.trace_id, &self.span_id, flags);
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(TRACEPARENT, value);
        }
        if !self.keep_tracestate {
            headers.remove(TRACESTATE);
        }
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.sampled { SAMPLED } else { 0 };
        let text = traceparent::format(&self.trace_id, &self.span_id, flags);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Receives and begins traces; one for each worker.
#[derive(Debug)]
pub(crate) struct Tracer {
    random: RefCell<Random>,
    /// A new trace is sampled when the low half of its id lies below; `None` is always.
    threshold: Option<u64>,
    exports: bool,
}

impl Tracer {
    /// A tracer that samples this share (0 to 1) of the traces that it begins. Without a collector
    /// (`exports` is false) it begins none as sampled, and goes on with those that others sample.
    pub(crate) fn new(ratio: f64, exports: bool) -> Self {
        Self::with_random(ratio, exports, Random::from_system())
    }

    fn with_random(ratio: f64, exports: bool, random: Random) -> Self {
        // 2^64 itself does not fit, so "always" is a case of its own.
        let threshold = (ratio < 1.0).then(|| (ratio.max(0.0) * 2.0_f64.powi(64)) as u64);
        Self {
            random: RefCell::new(random),
            threshold,
            exports,
        }
    }

    /// The context of a request with these headers and this parent, as they name it: the next span of its trace, with its
    /// sampling decision, or the first one of a new trace.
    pub(crate) fn receive(&self, headers: &HeaderMap, parent: Option<TraceParent>) -> TraceContext {
        let mut random = self.random.borrow_mut();
        let Some(parent) = parent else {
            return self.begin_with(&mut random);
        };
        let states = headers
            .get_all(TRACESTATE)
            .iter()
            .map(HeaderValue::as_bytes);
        TraceContext {
            trace_id: parent.trace_id,
            span_id: random.span_id(),
            parent_id: Some(parent.parent_id),
            sampled: parent.flags & SAMPLED != 0,
            keep_tracestate: tracestate::is_valid(states),
        }
    }

    /// What `begun`, a trace that the proxy has begun itself, becomes when its parent is found after all. What the parent
    /// samples stays sampled; of other traces the usual share is, decided by the trace's id and so alike in all of it.
    pub(crate) fn adopt(&self, begun: TraceContext, parent: TraceParent) -> TraceContext {
        let [.., a, b, c, d, e, f, g, h] = parent.trace_id;
        let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        TraceContext {
            trace_id: parent.trace_id,
            parent_id: Some(parent.parent_id),
            sampled: parent.flags & SAMPLED != 0 || self.samples(low),
            ..begun
        }
    }

    fn samples(&self, low: u64) -> bool {
        self.exports && self.threshold.is_none_or(|threshold| low < threshold)
    }

    /// The first span of a new trace.
    #[cfg(test)]
    pub(crate) fn begin(&self) -> TraceContext {
        self.begin_with(&mut self.random.borrow_mut())
    }

    fn begin_with(&self, random: &mut Random) -> TraceContext {
        let (trace_id, low) = random.trace_id();
        TraceContext {
            trace_id,
            span_id: random.span_id(),
            parent_id: None,
            sampled: self.samples(low),
            keep_tracestate: false,
        }
    }
}

/// The parent that a request names.
pub(crate) fn received_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => traceparent::parse(value.as_bytes()),
        // Two of them are as good as none, section 3.2 of the standard.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(ratio: f64) -> Tracer {
        Tracer::with_random(ratio, true, Random::from_seed(7))
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::try_from(*value).unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn receive(tracer: &Tracer, headers: &HeaderMap) -> TraceContext {
        tracer.receive(headers, received_parent(headers))
    }

    #[test]
    fn a_received_trace_goes_on_with_a_span_of_the_proxys_own() {
        let mut headers = headers(&[("traceparent", PARENT), ("tracestate", "congo=t61,rojo=0")]);
        let context = receive(&tracer(0.0), &headers);
        assert!(context.sampled, "the parent's decision holds");
        context.apply(&mut headers);
        let sent = headers["traceparent"].to_str().unwrap();
        let span: String = context
            .span_id
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            sent,
            format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01")
        );
        assert_ne!(Some(context.span_id), context.parent_id);
        assert_eq!(headers["tracestate"], "congo=t61,rojo=0");
    }

    #[test]
    fn a_trace_that_was_begun_is_continued_when_its_parent_is_found_after_all() {
        let parent = |flags: &str| TraceParent::parse(PARENT.replace("-01", flags).as_bytes());
        for (flags, ratio, sampled) in [("-01", 0.0, true), ("-00", 0.0, false), ("-00", 1.0, true)]
        {
            let tracer = tracer(ratio);
            let begun = tracer.begin();
            let context = tracer.adopt(begun, parent(flags).unwrap());
            let mut headers = HeaderMap::new();
            context.apply(&mut headers);
            let sent = headers["traceparent"].to_str().unwrap();
            assert!(
                sent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"),
                "{sent}"
            );
            assert_eq!(context.span_id, begun.span_id);
            assert_eq!(
                context.parent_id,
                Some(*b"\x00\xf0\x67\xaa\x0b\xa9\x02\xb7")
            );
            assert_eq!(context.sampled, sampled, "{flags} {ratio}");
        }
    }

    #[test]
    fn a_parent_that_is_not_sampled_stays_so() {
        let parent = PARENT.replace("-01", "-00");
        let context = receive(&tracer(1.0), &headers(&[("traceparent", &parent)]));
        assert!(!context.sampled);
    }

    #[test]
    fn an_unreadable_parent_begins_a_new_trace_without_its_tracestate() {
        let twice = [
            ("traceparent", PARENT),
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
        ];
        let broken = [("traceparent", "00-nonsense"), ("tracestate", "a=1")];
        for received in [&twice[..], &broken[..], &[("tracestate", "a=1")]] {
            let mut headers = headers(received);
            let context = receive(&tracer(1.0), &headers);
            assert_eq!(context.parent_id, None);
            context.apply(&mut headers);
            assert_eq!(headers.get_all("traceparent").iter().count(), 1);
            assert!(!headers.contains_key("tracestate"));
        }
    }

    #[test]
    fn a_broken_tracestate_is_not_sent_on_and_the_trace_is() {
        let mut headers = headers(&[("traceparent", PARENT), ("tracestate", "a=1,,=")]);
        let context = receive(&tracer(0.0), &headers);
        context.apply(&mut headers);
        assert!(context.parent_id.is_some());
        assert!(!headers.contains_key("tracestate"));
    }

    #[test]
    fn the_share_of_sampled_traces_is_the_ratio() {
        let sampled = |ratio, exports| {
            let tracer = Tracer::with_random(ratio, exports, Random::from_seed(11));
            (0..10_000).filter(|_| tracer.begin().sampled).count()
        };
        assert_eq!(sampled(0.0, true), 0);
        assert_eq!(sampled(1.0, true), 10_000);
        assert_eq!(
            sampled(1.0, false),
            0,
            "nothing is sampled for no collector"
        );
        let hundredth = sampled(0.01, true);
        assert!((60..=140).contains(&hundredth), "{hundredth}");
    }
}
