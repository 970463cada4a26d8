//! How health is found out, from the policy of a service.

use std::sync::Arc;
use std::time::Duration;

use sidewind_api::v1;

/// How the health of a service's endpoints is found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HealthSettings {
    /// None: there are no checks.
    pub(crate) check: Option<Arc<CheckSettings>>,
    pub(crate) outlier: OutlierSettings,
}

/// An active check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckSettings {
    pub(crate) kind: CheckKind,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) healthy_threshold: u32,
    pub(crate) unhealthy_threshold: u32,
    pub(crate) jitter_percent: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CheckKind {
    Tcp,
    Http {
        path: String,
        /// Empty: the endpoint's address.
        host: String,
        statuses: Vec<(u16, u16)>,
        /// None: whatever it is.
        body: Option<ExpectedBody>,
        /// Whether it is asked for in HTTP/2: of a service that speaks nothing else.
        http2: bool,
    },
    Grpc {
        service: String,
    },
}

/// What the body of an answer must be, all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ExpectedBody {
    /// Somewhere in it; empty: nothing.
    pub(crate) contains: String,
    /// Of a body that is one JSON value: a pointer (RFC 6901), and the text of what is there.
    pub(crate) json: Vec<(String, String)>,
}

/// When requests eject an endpoint. Times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutlierSettings {
    /// 0: not looked at.
    pub(crate) consecutive_failures: u32,
    /// 0: not looked at.
    pub(crate) min_success_percent: u32,
    pub(crate) min_requests: u32,
    pub(crate) interval: u64,
    pub(crate) hold: u64,
    pub(crate) max_hold: u64,
    pub(crate) max_ejected_percent: u32,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            min_success_percent: 0,
            min_requests: 20,
            interval: 10_000,
            hold: 10_000,
            max_hold: 300_000,
            max_ejected_percent: 67,
        }
    }
}

impl HealthSettings {
    /// Those of a policy, for a service that speaks HTTP/2 alone where `http2`.
    pub(crate) fn of(policy: &v1::TrafficPolicy, http2: bool) -> Self {
        let outlier = policy.outlier_detection.as_ref();
        Self {
            check: policy
                .health_check
                .as_ref()
                .and_then(|check| CheckSettings::read(check, http2))
                .map(Arc::new),
            outlier: outlier.map(OutlierSettings::from).unwrap_or_default(),
        }
    }
}

impl From<&v1::OutlierDetection> for OutlierSettings {
    fn from(given: &v1::OutlierDetection) -> Self {
        let default = Self::default();
        let or = |given: u64, absent: u64| if given == 0 { absent } else { given };
        let hold = or(given.hold_ms, default.hold);
        Self {
            consecutive_failures: given
                .consecutive_failures
                .unwrap_or(default.consecutive_failures),
            min_success_percent: given.min_success_percent.min(100),
            min_requests: given.min_requests.max(1),
            interval: or(given.interval_ms, default.interval),
            hold,
            max_hold: or(given.max_hold_ms, default.max_hold).max(hold),
            max_ejected_percent: given
                .max_ejected_percent
                .unwrap_or(default.max_ejected_percent)
                .min(100),
        }
    }
}

impl From<&v1::BodyExpectation> for ExpectedBody {
    fn from(given: &v1::BodyExpectation) -> Self {
        let json = given.json.iter();
        Self {
            contains: given.contains.clone(),
            json: json
                .map(|it| (it.pointer.clone(), it.value.clone()))
                .collect(),
        }
    }
}

impl CheckSettings {
    /// None for a kind that this version does not know: no check is better than a wrong one.
    fn read(given: &v1::HealthCheck, http2: bool) -> Option<Self> {
        use v1::health_check::Check;
        let status = |status: u32| u16::try_from(status).ok();
        let kind = match given.check.as_ref()? {
            Check::Tcp(v1::TcpCheck {}) => CheckKind::Tcp,
            Check::Grpc(grpc) => CheckKind::Grpc {
                service: grpc.service.clone(),
            },
            Check::Http(http) => {
                let ranges = http.statuses.iter();
                let ranges = ranges.filter_map(|r| Some((status(r.first)?, status(r.last)?)));
                let mut statuses: Vec<(u16, u16)> = ranges.collect();
                if statuses.is_empty() {
                    statuses.push((200, 299));
                }
                CheckKind::Http {
                    path: http.path.clone(),
                    host: http.host.clone(),
                    statuses,
                    body: http.body.as_ref().map(ExpectedBody::from),
                    http2,
                }
            }
        };
        let time = |ms: u64, least: u64| Duration::from_millis(ms.max(least));
        Some(Self {
            kind,
            interval: time(given.interval_ms, 100),
            timeout: time(given.timeout_ms, 1),
            healthy_threshold: given.healthy_threshold.max(1),
            unhealthy_threshold: given.unhealthy_threshold.max(1),
            jitter_percent: given.jitter_percent.min(100),
        })
    }
}
