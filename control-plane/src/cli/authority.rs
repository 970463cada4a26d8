//! The commands about certificate authorities.

use super::arguments::{
    AuthorityRevokeFlags, AuthorityRotateFlags, AuthorityShowFlags, AuthorityTaintFlags,
};
use super::client::ask;
use super::{Failure, output};
use sidewind_api::v1;

pub(super) fn show(flags: &AuthorityShowFlags) -> Result<(), Failure> {
    let answer = ask(&flags.socket, async |mut client| {
        client.get_authority(v1::GetAuthorityRequest {}).await
    })?;
    if flags.pem {
        print!("{}", output::roots_pem(&answer)?);
    } else {
        print!("{}", output::authority(&answer));
    }
    Ok(())
}

pub(super) fn rotate(flags: &AuthorityRotateFlags) -> Result<(), Failure> {
    let kind = match (flags.root, flags.jwt) {
        (true, _) => v1::AuthorityKind::Root,
        (_, true) => v1::AuthorityKind::Jwt,
        _ => v1::AuthorityKind::Signing,
    };
    let request = v1::RotateAuthorityRequest {
        kind: kind.into(),
        dry_run: flags.dry_run,
        force: flags.force,
    };
    let answer = ask(&flags.socket, async |mut client| {
        client.rotate_authority(request).await
    })?;
    for laggard in &answer.laggards {
        println!("not acknowledged by {laggard}");
    }
    let sentences = answer.steps.join("\n");
    if answer.waiting {
        return Err(Failure::Other(sentences));
    }
    println!("{sentences}");
    Ok(())
}

pub(super) fn taint(flags: &AuthorityTaintFlags) -> Result<(), Failure> {
    let request = v1::TaintAuthorityRequest {
        subject_key_id: flags.key_id.clone(),
    };
    let answer = ask(&flags.socket, async |mut client| {
        client.taint_authority(request).await
    })?;
    println!(
        "tainted; {} connected proxies are to renew",
        answer.affected
    );
    Ok(())
}

pub(super) fn revoke(flags: &AuthorityRevokeFlags) -> Result<(), Failure> {
    let request = v1::RevokeAuthorityRequest {
        subject_key_id: flags.key_id.clone(),
        force: flags.force,
    };
    let answer = ask(&flags.socket, async |mut client| {
        client.revoke_authority(request).await
    })?;
    println!(
        "revoked; the trust bundle without it has sequence {}",
        answer.bundle_sequence
    );
    Ok(())
}
