//! Authorities whose certificates are believed, of the CA that a mesh moves away from.

use super::super::Draft;
use super::super::document::Reader;
use super::file;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::path::PathBuf;

/// Most bytes of an authority's name.
const MAX_NAME_BYTES: usize = 63;

/// An authority.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct X509Authority {
    /// Its name here.
    pub authority: String,
    /// Its root certificates in PEM, read again when they change.
    pub ca_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    authority: Spanned<String>,
    ca_file: Spanned<String>,
}

pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft, entry: &Spanned<Entry>) {
    let name = &entry.value.authority;
    let known =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if name.value.is_empty() || name.value.len() > MAX_NAME_BYTES || !name.value.bytes().all(known)
    {
        reader.refuse(name, "must be of lower-case letters, digits, `-` and `.`");
    }
    reader.take(draft, name, format!("X.509 authority {}", name.value));
    let ca_file = file(reader, Some(&entry.value.ca_file));
    if let Some(ca_file) = ca_file.filter(|_| reader.is_sound()) {
        draft.add_x509_authority(X509Authority {
            authority: name.value.clone(),
            ca_file,
        });
    }
}
