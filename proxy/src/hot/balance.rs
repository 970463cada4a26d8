use std::num::NonZeroU32;

use crate::balance::{
    Algorithm, BalanceSettings, Balancer, EndpointDesc, Outcome, Selection, hash,
};

/// A service with endpoints, of which one is picked for each request.
#[derive(Debug)]
pub struct Balance(Balancer);

impl Balance {
    /// So many endpoints, chosen from by peak EWMA, or by consistent hash with a bound.
    pub fn new(endpoints: u8, consistent_hash: bool) -> Self {
        let plain = |number| EndpointDesc {
            weight: NonZeroU32::MIN,
            ..EndpointDesc::plain(([10, 0, 0, number], 8080).into())
        };
        let endpoints: Vec<EndpointDesc> = (1..=endpoints).map(plain).collect();
        let settings = BalanceSettings {
            algorithm: if consistent_hash {
                Algorithm::ConsistentHash
            } else {
                Algorithm::PeakEwma
            },
            hash_load_percent: 125,
            ..BalanceSettings::default()
        };
        Self(Balancer::alone(&endpoints, settings, 7))
    }

    /// One request: picked, answered, and gone.
    pub fn request(&self, key: u64) -> bool {
        let selection = Selection {
            hash: Some(hash(&key.to_be_bytes())),
            ..Selection::default()
        };
        let pick = self.0.pick(&selection);
        pick.inspect(|pick| pick.finish(Outcome::Success)).is_some()
    }
}
