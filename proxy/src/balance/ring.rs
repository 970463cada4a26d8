//! Consistent hashing: each endpoint has points on a ring, and a key belongs to the first point after it. When an
//! endpoint comes or goes, only the keys of its own points move.

use super::EndpointDesc;

/// Points of an endpoint of average weight: shares then differ by about a tenth.
const POINTS: u64 = 128;

/// Most points of one endpoint, and least.
const MAX_POINTS: u64 = 1024;

/// The points, in order.
#[derive(Debug, Default)]
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// The ring of these endpoints. Where a point is depends on the endpoint alone, so that every worker and every
    /// proxy has the same ring.
    pub(super) fn new<'a>(
        endpoints: impl ExactSizeIterator<Item = &'a EndpointDesc> + Clone,
    ) -> Self {
        let count = endpoints.len() as u64;
        let total: u64 = endpoints.clone().map(|it| u64::from(it.weight.get())).sum();
        let mut points = Vec::new();
        for (index, desc) in (0_u32..).zip(endpoints) {
            let weight = u64::from(desc.weight.get());
            let share = weight * count * POINTS / total.max(1);
            let base = hash(desc.address.to_string().as_bytes());
            for number in 0..share.clamp(1, MAX_POINTS) {
                points.push((mix(base ^ mix(number + 1)), index));
            }
        }
        points.sort_unstable();
        Self { points }
    }

    /// The endpoint of a key that fits, going on around the ring from the key's own. When none fits, the key's own.
    pub(super) fn find(&self, key: u64, fits: impl Fn(usize) -> Option<bool>) -> Option<usize> {
        let start = self.points.partition_point(|(point, _)| *point < key);
        let (before, after) = self.points.split_at_checked(start)?;
        let around = || after.iter().chain(before).map(|(_, index)| *index as usize);
        around()
            .find(|index| fits(*index) == Some(true))
            .or_else(|| around().next())
    }
}

/// A hash that is the same everywhere and always: FNV-1a, mixed. It spreads keys and keeps no secret.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The finalizer of MurmurHash3: each bit of what goes in changes half of the bits that come out.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
