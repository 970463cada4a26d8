//! SPIFFE bundle maps (SPIFFE_Trust_Domain_and_Bundle.md section 5): the documents of several trust domains in one.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::document::{
    BundleDocument, DEFAULT_REFRESH_HINT, DocumentError, parse_bounded, whole_number,
};
use crate::spiffe_id::{SpiffeIdError, TrustDomain};

/// The largest map that is parsed.
pub const MAX_MAP_BYTES: usize = 4 * 1024 * 1024;
/// The most trust domains of a map.
pub const MAX_MAP_TRUST_DOMAINS: usize = 64;

/// Why a map is refused as a whole. A trust domain that is there twice makes it so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// It cannot be read.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// It has more than [`MAX_MAP_TRUST_DOMAINS`].
    #[error("the bundle map holds {0} trust domains; at most {MAX_MAP_TRUST_DOMAINS} are taken")]
    TooMany(usize),
    /// Two trust domains have an authority of one key, and each could speak for the other.
    #[error("trust domains {first} and {second} have an authority with the same key")]
    SharedKey {
        /// The one.
        first: TrustDomain,
        /// The other.
        second: TrustDomain,
    },
}

/// Why one entry of a map was left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Its name is no trust domain's.
    #[error("not the name of a trust domain: {0}")]
    Name(#[from] SpiffeIdError),
    /// Its document is refused.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// The documents of several trust domains.
#[derive(Clone, Debug)]
pub struct BundleMap {
    /// The documents, in the order of their trust domains' names. Their own refresh hints say nothing about the map.
    pub documents: Vec<BundleDocument>,
    /// Entries that were left out, by the name they have in the map, cut short.
    pub refused: Vec<(String, EntryError)>,
    /// How long until the map should be fetched anew.
    pub refresh_hint: Duration,
}

impl BundleMap {
    /// Parses a map.
    ///
    /// # Errors
    /// [`MapError`] where the map as a whole cannot be relied on.
    pub fn parse(text: &[u8], now: SystemTime) -> Result<Self, MapError> {
        let members = parse_bounded(text, MAX_MAP_BYTES)?;
        let Some(Value::Object(entries)) = members.get("trust_domains") else {
            let (name, expected) = ("trust_domains", "an object");
            return Err(DocumentError::Member { name, expected }.into());
        };
        if entries.len() > MAX_MAP_TRUST_DOMAINS {
            return Err(MapError::TooMany(entries.len()));
        }
        let hint = whole_number(&members, "spiffe_refresh_hint")?;
        let mut map = Self {
            documents: Vec::new(),
            refused: Vec::new(),
            refresh_hint: hint.map_or(DEFAULT_REFRESH_HINT, Duration::from_secs),
        };
        for (name, entry) in entries {
            match parse_entry(name, entry, now) {
                Ok(document) => map.add(document)?,
                Err(reason) => map.refused.push((crate::jwt::cut(name), reason)),
            }
        }
        Ok(map)
    }

    fn add(&mut self, document: BundleDocument) -> Result<(), MapError> {
        let shares = |known: &&BundleDocument| known.shares_a_key_with(document.x509());
        if let Some(known) = self.documents.iter().find(shares) {
            return Err(MapError::SharedKey {
                first: known.trust_domain().clone(),
                second: document.trust_domain().clone(),
            });
        }
        self.documents.push(document);
        Ok(())
    }
}

fn parse_entry(name: &str, entry: &Value, now: SystemTime) -> Result<BundleDocument, EntryError> {
    let trust_domain = TrustDomain::parse(name)?;
    let members = entry.as_object().ok_or(DocumentError::Member {
        name: "trust_domains",
        expected: "an object of objects",
    })?;
    Ok(BundleDocument::from_members(trust_domain, members, now)?)
}
