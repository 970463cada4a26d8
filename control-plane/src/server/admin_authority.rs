//! The calls about certificate authorities, from gRPC and back.

use super::authorities::Authorities;
use crate::issuance::authority::slots::Slot;
use crate::issuance::authority::{CertificateAuthority, RotateOptions};
use crate::issuance::issuer::hex;
use crate::store::{AuthorityRole, AuthorityState, JwtKeyRecord, JwtKeyState, unix_seconds};
use sidewind_api::{Reason, v1};
use tonic::Status;

/// Everything about every authority but its key.
pub(super) fn show(authorities: &Authorities) -> Result<v1::GetAuthorityResponse, Status> {
    let authority: &CertificateAuthority = &authorities.authority;
    let (slots, bundle) = (authority.slots(), authority.bundle());
    let jwt_keys = authorities.jwt_keys.keys();
    let in_order = [AuthorityRole::Root, AuthorityRole::Signing];
    let in_order = in_order
        .iter()
        .flat_map(|role| slots.iter().filter(|slot| slot.role == *role));
    Ok(v1::GetAuthorityResponse {
        trust_domain: bundle.trust_domain().to_string(),
        bundle_sequence: authority.published_sequence(),
        authorities: in_order
            .map(described)
            .chain(jwt_keys.iter().map(described_jwt))
            .collect(),
    })
}

pub(super) async fn rotate(
    authorities: &Authorities,
    request: &v1::RotateAuthorityRequest,
    caller: &str,
) -> Result<v1::RotateAuthorityResponse, Status> {
    let options = RotateOptions {
        dry_run: request.dry_run,
        force: request.force,
    };
    let role = match request.kind() {
        v1::AuthorityKind::Root => AuthorityRole::Root,
        v1::AuthorityKind::Signing => AuthorityRole::Signing,
        v1::AuthorityKind::Jwt => {
            let rotation = authorities.rotate_jwt(options, caller).await?;
            return Ok(v1::RotateAuthorityResponse {
                steps: rotation.steps,
                laggards: Vec::new(),
                waiting: rotation.is_waiting,
            });
        }
        v1::AuthorityKind::Unspecified => {
            return Err(Reason::InvalidMessage.status("which authority is meant?"));
        }
    };
    let rotation = authorities.rotate(role, options, caller).await?;
    Ok(v1::RotateAuthorityResponse {
        steps: rotation.steps,
        laggards: rotation.laggards,
        waiting: rotation.is_waiting,
    })
}

pub(super) async fn taint(
    authorities: &Authorities,
    request: &v1::TaintAuthorityRequest,
    caller: &str,
) -> Result<v1::TaintAuthorityResponse, Status> {
    let jwt_key = request.subject_key_id.trim();
    if authorities.jwt_keys.has(jwt_key) {
        authorities.taint_jwt(jwt_key, caller).await?;
        return Ok(v1::TaintAuthorityResponse { affected: 0 });
    }
    let affected = authorities
        .taint(&key_id(&request.subject_key_id), caller)
        .await?;
    Ok(v1::TaintAuthorityResponse {
        affected: affected as u64,
    })
}

pub(super) async fn revoke(
    authorities: &Authorities,
    request: &v1::RevokeAuthorityRequest,
    caller: &str,
) -> Result<v1::RevokeAuthorityResponse, Status> {
    let jwt_key = request.subject_key_id.trim();
    if authorities.jwt_keys.has(jwt_key) {
        let revoked = authorities.revoke_jwt(jwt_key, request.force, caller);
        let bundle_sequence = revoked.await?;
        return Ok(v1::RevokeAuthorityResponse { bundle_sequence });
    }
    let key_id = key_id(&request.subject_key_id);
    let bundle_sequence = authorities.revoke(&key_id, request.force, caller).await?;
    Ok(v1::RevokeAuthorityResponse { bundle_sequence })
}

/// A key identifier as it is kept, however it was copied: other tools write colons and capitals.
fn key_id(text: &str) -> String {
    let text = text.trim().chars().filter(|character| *character != ':');
    text.map(|character| character.to_ascii_lowercase())
        .take(256)
        .collect()
}

fn described(slot: &Slot) -> v1::Authority {
    let der = slot.certificate();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let parsed = x509_parser::parse_x509_certificate(der).ok();
    let parsed = parsed.as_ref().map(|(_, certificate)| certificate);
    // As SVIDs show theirs: without the zero byte that DER puts before a high bit.
    let serial = parsed.map_or(&[][..], |certificate| match certificate.raw_serial() {
        [0, rest @ ..] => rest,
        serial => serial,
    });
    v1::Authority {
        role: slot.role.as_str().to_owned(),
        subject: parsed
            .map(|it| it.subject().to_string())
            .unwrap_or_default(),
        serial: hex(serial),
        sha256: hex(digest.as_ref()),
        not_before_unix: unix_seconds(slot.not_before),
        not_after_unix: unix_seconds(slot.not_after),
        certificate: der.to_vec(),
        state: match slot.state {
            AuthorityState::Old if slot.tainted => "tainted".to_owned(),
            state => state.as_str().to_owned(),
        },
        subject_key_id: slot.key_id.clone(),
    }
}

fn described_jwt(key: &JwtKeyRecord) -> v1::Authority {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.public_key);
    let state = match key.state {
        JwtKeyState::Prepared => "prepared",
        JwtKeyState::Active => "active",
        JwtKeyState::Old if key.tainted => "tainted",
        JwtKeyState::Old => "old",
    };
    v1::Authority {
        role: "jwt".to_owned(),
        subject: String::new(),
        serial: String::new(),
        sha256: hex(digest.as_ref()),
        not_before_unix: unix_seconds(key.created_at),
        not_after_unix: unix_seconds(key.not_after),
        certificate: Vec::new(),
        state: state.to_owned(),
        subject_key_id: key.key_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_is_read_as_other_tools_write_it() {
        assert_eq!(key_id(" AB:cd:01\n"), "abcd01");
        assert_eq!(key_id("abcd01"), "abcd01");
    }
}
