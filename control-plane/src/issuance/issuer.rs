//! Attest and renew: who is asking, what they may have, the certificate, the audit.

use super::Refusal;
use super::admission::{Admission, Admitted};
use super::authority::{CertificateAuthority, Issued, Standing, is_reserved};
use super::bans::Bans;
use super::refusals::Refusals;
use super::registrations::{Registrations, name};
use crate::attest::{Attested, Attestors, Presented, Settlement};
use crate::store::writer::{Write, Writer};
use crate::store::{AuditRecord, GRANTED, Registration};
use crate::telemetry::{Metrics, Throttle};
use rustls_pki_types::CertificateDer;
use sidewind_api::{MAX_CSR_BYTES, Reason, v1};
use sidewind_identity::authority::{SignError, SvidTemplate};
use sidewind_identity::{PeerIdentity, SpiffeId};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Issues SVIDs.
#[derive(Debug)]
pub struct Issuer {
    authority: Arc<CertificateAuthority>,
    attestors: Attestors,
    admission: Admission,
    registrations: Arc<Registrations>,
    bans: Arc<Bans>,
    writer: Writer,
    metrics: Arc<Metrics>,
    refusals: Refusals,
}

impl Issuer {
    /// An issuer.
    #[must_use]
    pub fn new(
        authority: Arc<CertificateAuthority>,
        attestors: Attestors,
        admission: Admission,
        registrations: Arc<Registrations>,
        bans: Arc<Bans>,
        writer: Writer,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            authority,
            attestors,
            admission,
            registrations,
            bans,
            writer,
            metrics,
            refusals: Refusals::default(),
        }
    }

    /// A nonce for evidence that is signed for this occasion.
    ///
    /// # Errors
    /// Why not; the refusal is in the audit already.
    pub fn challenge(&self, caller: IpAddr) -> Result<v1::ChallengeResponse, Refusal> {
        let challenges = self.attestors.challenges();
        let nonce = challenges.give(caller);
        let nonce = nonce.map_err(|refusal| {
            let audit = AuditRecord {
                csr_sha256: None,
                ..audit_record("challenge", &[], caller)
            };
            self.refused(audit, refusal)
        })?;
        Ok(v1::ChallengeResponse {
            nonce,
            server_id: challenges.server_id().to_owned(),
            version: sidewind_api::VERSION.to_owned(),
        })
    }

    /// Exchanges evidence for a first certificate. Gives back what was registered, too. `admit` is asked about what was
    /// attested before anything is signed for it.
    ///
    /// # Errors
    /// Why not; the refusal is in the audit already.
    pub async fn attest(
        &self,
        request: &v1::AttestRequest,
        caller: IpAddr,
        admit: impl FnOnce(&Registration) -> Result<(), Refusal>,
    ) -> Result<(v1::SvidResponse, Arc<Registration>), Refusal> {
        let mut audit = audit_record("attest", &request.csr, caller);
        let result = self.try_attest(request, &mut audit, admit).await;
        result.map_err(|refusal| self.refused(audit, refusal))
    }

    async fn try_attest(
        &self,
        request: &v1::AttestRequest,
        audit: &mut AuditRecord,
        admit: impl FnOnce(&Registration) -> Result<(), Refusal>,
    ) -> Result<(v1::SvidResponse, Arc<Registration>), Refusal> {
        check_csr_size(&request.csr)?;
        let (attestor, evidence) = self.attestors.of(request.evidence.as_ref())?;
        let presented = Presented {
            evidence,
            csr: &request.csr,
            now: audit.at,
        };
        let Admitted { registration, pins } = match attestor.attest(presented).await? {
            Attested::Granted(registration) => Admitted {
                registration,
                pins: Vec::new(),
            },
            Attested::Facts(facts) => self.admission.admit(&facts)?,
        };
        audit.spiffe_id = Some(registration.spiffe_id.to_string());
        self.bans.check_identity(&registration.spiffe_id)?;
        admit(&registration)?;
        // Signed before the evidence is used up: a bad request must not cost its sender the token.
        let issued = self.sign(&request.csr, &template(&registration), audit.at)?;
        note(audit, &registration, &issued);
        let settlement = Settlement {
            registration: &registration,
            issued: &issued,
            audit,
            pins: &pins,
        };
        self.attestors.settle(evidence, settlement).await?;
        audit.log();
        self.metrics.count_issued("attest");
        let registration = Arc::new(registration);
        let registration = self.registrations.add(registration, issued.record());
        Ok((
            self.response_to_workload(&issued, &registration),
            registration,
        ))
    }

    /// Counts and records the refusal of a call whose request was not read.
    pub fn refuse_unread(
        &self,
        event: &'static str,
        peer: Option<&PeerIdentity>,
        caller: IpAddr,
        refusal: Refusal,
    ) -> Refusal {
        let mut audit = audit_record(event, &[], caller);
        audit.csr_sha256 = None;
        audit.spiffe_id = peer.map(|peer| peer.id.to_string());
        self.refused(audit, refusal)
    }

    /// Signs a new key for the identity of a living certificate. Needs no store for one that is known here.
    /// Gives back what is registered by the documents of now, too.
    ///
    /// # Errors
    /// Why not; the refusal is in the audit already.
    pub async fn renew(
        &self,
        request: &v1::RenewRequest,
        peer: Option<&PeerIdentity>,
        caller: IpAddr,
    ) -> Result<(v1::SvidResponse, Arc<Registration>), Refusal> {
        let mut audit = audit_record("renew", &request.csr, caller);
        let result = self.try_renew(request, peer, &mut audit).await;
        result.map_err(|refusal| self.refused(audit, refusal))
    }

    async fn try_renew(
        &self,
        request: &v1::RenewRequest,
        peer: Option<&PeerIdentity>,
        audit: &mut AuditRecord,
    ) -> Result<(v1::SvidResponse, Arc<Registration>), Refusal> {
        audit.spiffe_id = peer.map(|peer| peer.id.to_string());
        let registration = self.registration_now(peer, audit.at).await?;
        check_csr_size(&request.csr)?;
        let issued = self.sign(&request.csr, &template(&registration), audit.at)?;
        note(audit, &registration, &issued);
        self.writer.write(Write::Svid {
            svid: issued.record(),
            registration: registration.id.clone(),
        });
        self.granted(audit.clone());
        let registration = self.registrations.add(registration, issued.record());
        Ok((
            self.response_to_workload(&issued, &registration),
            registration,
        ))
    }

    /// Whether a verified certificate was signed here: it is on record, or the authority that it names as its issuer
    /// has really signed it.
    pub async fn has_issued(&self, peer: &PeerIdentity, certificate: &CertificateDer<'_>) -> bool {
        let (authority, now) = (&self.authority, SystemTime::now());
        self.registrations.is_on_record(peer)
            || authority
                .has_signed(certificate, &peer.issuer_key_id, now)
                .await
    }

    /// The registration of a peer as far as this process knows it, without asking the store: to count its calls by.
    #[must_use]
    pub fn known_registration(
        &self,
        peer: &PeerIdentity,
        now: SystemTime,
    ) -> Option<Arc<Registration>> {
        let is_valid = peer.not_after >= now && !is_reserved(&peer.id);
        self.registrations.of(peer).filter(|_| is_valid)
    }

    /// The registration that a peer's calls go by.
    ///
    /// # Errors
    /// When the peer showed no certificate, or one that has ended, is banned, has no registration or is not one of
    /// those that an authority in use has signed; and when nobody can say, because the store is away.
    pub async fn registration_of(
        &self,
        peer: Option<&PeerIdentity>,
        now: SystemTime,
    ) -> Result<Arc<Registration>, Refusal> {
        let peer = peer.ok_or_else(|| {
            Refusal::new(
                Reason::CertificateRequired,
                "this call needs a client certificate; attest first",
            )
        })?;
        // The connection may be older than the certificate's end.
        if peer.not_after < now {
            return Err(Refusal::new(
                Reason::CertificateExpired,
                format!("the certificate of {} has expired; attest again", peer.id),
            ));
        }
        if is_reserved(&peer.id) || peer.id.trust_domain() != self.authority.trust_domain() {
            return Err(Refusal::new(
                Reason::NotAWorkload,
                format!("{} is not a workload of this control plane", peer.id),
            ));
        }
        self.bans.check(&peer.id, &peer.serial_hex)?;
        let standing = self.authority.standing(&peer.issuer_key_id).await;
        if standing == Standing::None {
            return Err(Refusal::new(
                Reason::NotRegistered,
                format!(
                    "no authority in use has signed the certificate of {}; attest again",
                    peer.id
                ),
            ));
        }
        // Under a tainted authority a certificate that is not on record may be anybody's.
        let by_name = standing == Standing::Good;
        let found = self.registrations.find(peer, by_name).await;
        found
            .map_err(|error| Refusal::store(&error))?
            .ok_or_else(|| {
                Refusal::new(
                    Reason::NotRegistered,
                    format!(
                        "{} is not registered here (any more); attest again",
                        peer.id
                    ),
                )
            })
    }

    /// The registration that a peer's calls go by, as the documents of now have it.
    ///
    /// # Errors
    /// As [`Self::registration_of`], and when no document allows the identity any more.
    pub(super) async fn registration_now(
        &self,
        peer: Option<&PeerIdentity>,
        now: SystemTime,
    ) -> Result<Arc<Registration>, Refusal> {
        let registration = self.registration_of(peer, now).await?;
        self.admission.again(&registration)
    }

    /// Refuses an identity that is banned, or whose workload is.
    pub(super) fn check_ban(&self, id: &SpiffeId) -> Result<(), Refusal> {
        self.bans.check_identity(id)
    }

    /// Signs the key of a request.
    pub(super) fn sign(
        &self,
        csr: &[u8],
        template: &SvidTemplate,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        if is_reserved(&template.id) {
            let message = format!("{} is reserved", template.id);
            return Err(Refusal::new(Reason::NotAWorkload, message));
        }
        let signed = self.authority.sign_template(csr, template, now);
        signed.map_err(|error| {
            let reason = sign_refusal(&error);
            if reason == Reason::Internal {
                static FAILED: Throttle = Throttle::new();
                if let Some(unsaid) = FAILED.admit("sign") {
                    let error = crate::telemetry::chain(&error);
                    tracing::error!(error, unsaid, "signing failed");
                }
                return Refusal::new(reason, "the control plane could not sign; see its log");
            }
            Refusal::new(reason, error.to_string())
        })
    }

    /// What is answered with a certificate.
    pub(super) fn response(&self, issued: &Issued) -> v1::SvidResponse {
        v1::SvidResponse {
            certificate_chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
            trust_bundles: self.authority.api_bundles().bundles,
            version: sidewind_api::VERSION.to_owned(),
            now_unix_ms: sidewind_api::clock::unix_ms(SystemTime::now()),
            task_identities: None,
        }
    }

    /// The same to a workload, which is told what its tasks may have.
    fn response_to_workload(
        &self,
        issued: &Issued,
        registration: &Registration,
    ) -> v1::SvidResponse {
        let terms = registration.task_identities.as_ref();
        v1::SvidResponse {
            task_identities: terms.map(|terms| v1::TaskIdentities {
                needs_airflow_token: terms.airflow.is_some(),
            }),
            ..self.response(issued)
        }
    }

    /// Counts and records what was granted.
    pub(super) fn granted(&self, audit: AuditRecord) {
        self.metrics.count_issued(audit.event);
        self.writer.audit(audit);
    }

    /// Counts and records a refusal; in a flood of refusals some are only counted.
    pub(super) fn refused(&self, mut audit: AuditRecord, refusal: Refusal) -> Refusal {
        let outcome = refusal.reason.as_str();
        self.metrics.count_refused(audit.event, outcome);
        if self.refusals.record(&audit.caller) {
            audit.outcome = outcome;
            audit.detail = Some(refusal.message.clone());
            (audit.serial, audit.not_after, audit.registration) = (None, None, None);
            self.writer.audit(audit);
        } else {
            self.metrics.audit_suppressed.inc();
        }
        refusal
    }
}

pub(super) fn check_csr_size(csr: &[u8]) -> Result<(), Refusal> {
    if csr.len() <= MAX_CSR_BYTES {
        return Ok(());
    }
    let message = format!(
        "the certificate signing request has {} bytes; at most {MAX_CSR_BYTES} are taken",
        csr.len()
    );
    Err(Refusal::new(Reason::CsrRefused, message))
}

/// A record of what is asked for now.
pub(super) fn audit_record(event: &'static str, csr: &[u8], caller: IpAddr) -> AuditRecord {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, csr);
    AuditRecord {
        at: SystemTime::now(),
        event,
        outcome: GRANTED,
        detail: None,
        spiffe_id: None,
        registration: None,
        serial: None,
        not_after: None,
        caller: caller.to_string(),
        csr_sha256: Some(hex(digest.as_ref())),
    }
}

/// What a workload's certificate says.
fn template(registration: &Registration) -> SvidTemplate {
    SvidTemplate {
        id: registration.spiffe_id.clone(),
        ttl: registration.svid_ttl,
        dns_names: registration.dns_names.clone(),
    }
}

fn note(audit: &mut AuditRecord, registration: &Registration, issued: &Issued) {
    audit.registration = Some(name(registration));
    audit.serial = Some(issued.serial.clone());
    audit.not_after = Some(issued.not_after);
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Whose fault it is that nothing was signed.
fn sign_refusal(error: &SignError) -> Reason {
    match error {
        SignError::CsrTooLarge(_)
        | SignError::CsrMalformed
        | SignError::CsrTrailingBytes(_)
        | SignError::CsrKeyType(_)
        | SignError::CsrSignature
        | SignError::CsrNamesOtherId { .. } => Reason::CsrRefused,
        SignError::Ttl { .. } | SignError::OutlivesIssuer { .. } => Reason::LifetimeRefused,
        SignError::OtherTrustDomain { .. } | SignError::NotAWorkload(_) => Reason::NotAWorkload,
        _ => Reason::Internal,
    }
}

/// Checks the lifetime of certificates that a token or flag asks for.
///
/// # Errors
/// When it is out of range, or the authority cannot promise it.
pub fn check_lifetime(authority: &CertificateAuthority, asked: Duration) -> Result<(), Refusal> {
    check_lifetime_range(asked)?;
    authority
        .check_lifetime(asked)
        .map_err(|error| Refusal::new(Reason::LifetimeRefused, error.to_string()))
}

/// Checks a lifetime as far as no authority is needed for it.
///
/// # Errors
/// When no authority could promise it.
pub fn check_lifetime_range(asked: Duration) -> Result<(), Refusal> {
    use sidewind_identity::authority::{MAX_SVID_TTL, MIN_SVID_TTL};
    if (MIN_SVID_TTL..=MAX_SVID_TTL).contains(&asked) {
        return Ok(());
    }
    let message = format!(
        "an SVID lives from 1 minute to 24 hours, not {}",
        sidewind_api::duration::format(asked)
    );
    Err(Refusal::new(Reason::LifetimeRefused, message))
}
