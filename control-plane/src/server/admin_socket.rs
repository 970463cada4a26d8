//! `AdminService`: what the command line asks, over a Unix socket that its user alone can open.

use super::authorities::Authorities;
use super::{Shutdown, admin_authority};
use crate::attest::join_token::mint;
use crate::config::federated_trust_domain::MAX_FEDERATED;
use crate::federation::Federation;
use crate::issuance::Refusal;
use crate::issuance::authority::{CertificateAuthority, is_reserved};
use crate::issuance::bans::Bans;
use crate::issuance::issuer::{check_lifetime, hex};
use crate::registry::Registry;
use crate::store::audit_chain::StoredRecord;
use crate::store::{AuditRecord, GRANTED, JoinTokenRecord, Store, from_unix_seconds, unix_seconds};
use crate::telemetry::{LogError, LogHandle, Metrics, Throttle};
use sidewind_api::v1::admin_service_server::{AdminService, AdminServiceServer};
use sidewind_api::{Reason, ServiceNameError, duration, v1};
use sidewind_identity::{SpiffeId, TrustDomain};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

/// How long a join token is good when nothing else is asked for, and at most.
const TOKEN_TIME: Duration = Duration::from_secs(600);
const MAX_TOKEN_TIME: Duration = Duration::from_secs(86_400);
/// Most services of one join token.
const MAX_SERVICES: usize = 256;
/// Most records of the audit in one answer.
const MAX_AUDIT_PAGE: u32 = 1000;

#[derive(Debug)]
pub(super) struct AdminApi {
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) authorities: Arc<Authorities>,
    pub(super) store: Store,
    pub(super) registry: Arc<Registry>,
    pub(super) bans: Arc<Bans>,
    pub(super) federation: Arc<Federation>,
    pub(super) svid_ttl: Duration,
    pub(super) metrics: Arc<Metrics>,
    /// None where this process is not the one that logs.
    pub(super) logs: Option<LogHandle>,
}

/// Opens the socket for its owner alone.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    // The state directory's lock is held, so what is there is left over from an earlier process.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until the shutdown begins.
pub(super) async fn serve(
    listener: UnixListener,
    api: AdminApi,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let (sender, receiver) = mpsc::channel(8);
    let accepting = tokio::spawn(accept(listener, sender, Arc::clone(&api.metrics)));
    let served = tonic::transport::Server::builder()
        .timeout(Duration::from_secs(30))
        .add_service(AdminServiceServer::new(api))
        .serve_with_incoming_shutdown(ReceiverStream::new(receiver), shutdown.wait())
        .await;
    accepting.abort();
    served
}

/// Hands on the connections of this process's own user and of root.
async fn accept(
    listener: UnixListener,
    accepted: mpsc::Sender<io::Result<UnixStream>>,
    metrics: Arc<Metrics>,
) {
    static REFUSED: Throttle = Throttle::new();
    let refused = |reason: &'static str, uid: Option<u32>, error: &dyn std::fmt::Display| {
        metrics.count_admin_connection_refused("socket", reason);
        if let Some(unsaid) = REFUSED.admit(reason) {
            tracing::warn!(reason, uid, %error, unsaid, "a connection to the admin socket was refused");
        }
    };
    let own = rustix::process::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                refused("accept-failed", None, &error);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own || peer.uid() == 0 => {
                if accepted.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
            Ok(peer) => {
                let whose = "it is for this process's own user and root alone";
                refused("not-permitted", Some(peer.uid()), &whose);
            }
            Err(error) => refused("not-permitted", None, &error),
        }
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let uid = uid(&request);
        let now = SystemTime::now();
        let (token, expires_in) = self.check_token(request.get_ref())?;
        let (secret, sha256) = mint()?;
        let expires_at = now + expires_in;
        let audit = AuditRecord {
            at: now,
            event: "token-create",
            outcome: GRANTED,
            detail: None,
            spiffe_id: Some(token.spiffe_id.to_string()),
            registration: None,
            serial: None,
            not_after: Some(expires_at),
            caller: uid,
            csr_sha256: None,
        };
        self.store
            .insert_join_token(sha256, &token, expires_at, &audit)
            .await
            .map_err(|error| Refusal::store(&error))?;
        audit.log();
        Ok(Response::new(v1::CreateJoinTokenResponse {
            token: secret.to_string(),
            expires_at_unix: unix_seconds(expires_at),
        }))
    }

    async fn get_authority(
        &self,
        _request: Request<v1::GetAuthorityRequest>,
    ) -> Result<Response<v1::GetAuthorityResponse>, Status> {
        admin_authority::show(&self.authorities).map(Response::new)
    }

    async fn list_workloads(
        &self,
        _request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        Ok(Response::new(v1::ListWorkloadsResponse {
            workloads: self.registry.workloads(),
        }))
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Result<Response<v1::RotateAuthorityResponse>, Status> {
        let caller = uid(&request);
        let answer = admin_authority::rotate(&self.authorities, request.get_ref(), &caller);
        answer.await.map(Response::new)
    }

    async fn taint_authority(
        &self,
        request: Request<v1::TaintAuthorityRequest>,
    ) -> Result<Response<v1::TaintAuthorityResponse>, Status> {
        let caller = uid(&request);
        let answer = admin_authority::taint(&self.authorities, request.get_ref(), &caller);
        answer.await.map(Response::new)
    }

    async fn revoke_authority(
        &self,
        request: Request<v1::RevokeAuthorityRequest>,
    ) -> Result<Response<v1::RevokeAuthorityResponse>, Status> {
        let caller = uid(&request);
        let answer = admin_authority::revoke(&self.authorities, request.get_ref(), &caller);
        answer.await.map(Response::new)
    }

    async fn set_ban(
        &self,
        request: Request<v1::SetBanRequest>,
    ) -> Result<Response<v1::SetBanResponse>, Status> {
        let caller = uid(&request);
        let answer = self.change_ban(request.into_inner(), caller).await?;
        Ok(Response::new(answer))
    }

    async fn list_bans(
        &self,
        _request: Request<v1::ListBansRequest>,
    ) -> Result<Response<v1::ListBansResponse>, Status> {
        let v1::Bans { version, bans, .. } = self.bans.api();
        Ok(Response::new(v1::ListBansResponse { version, bans }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(self.explained(request.get_ref())?))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let v1::ListAuditRequest {
            since_unix,
            after_id,
            limit,
        } = *request.get_ref();
        let limit = match limit {
            0 => MAX_AUDIT_PAGE,
            limit => limit.min(MAX_AUDIT_PAGE),
        };
        let since = from_unix_seconds(since_unix);
        let records = self.store.audit_records(since, after_id, limit.into());
        let records = records.await.map_err(|error| Refusal::store(&error))?;
        Ok(Response::new(v1::ListAuditResponse {
            entries: records.into_iter().map(entry).collect(),
        }))
    }

    async fn verify_audit(
        &self,
        _request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let found = self.store.verify_audit(SystemTime::now()).await;
        let found = found.map_err(|error| Refusal::store(&error))?;
        let (head_position, head_hash) = found
            .head
            .map_or_else(Default::default, |seal| (seal.position, hex(&seal.hash)));
        Ok(Response::new(v1::VerifyAuditResponse {
            verified: found.verified,
            first_position: found.first,
            head_position,
            head_hash,
            unsealed: found.unsealed,
            problems: found.problems,
        }))
    }

    async fn list_federation(
        &self,
        _request: Request<v1::ListFederationRequest>,
    ) -> Result<Response<v1::ListFederationResponse>, Status> {
        Ok(Response::new(self.federation()))
    }

    async fn forget_trust_domain(
        &self,
        request: Request<v1::ForgetTrustDomainRequest>,
    ) -> Result<Response<v1::ForgetTrustDomainResponse>, Status> {
        let caller = uid(&request);
        let answer = self.forget_bundle(request.get_ref(), caller).await?;
        Ok(Response::new(answer))
    }

    async fn get_log_level(
        &self,
        _request: Request<v1::GetLogLevelRequest>,
    ) -> Result<Response<v1::LogLevel>, Status> {
        let filter = self.logs()?.get();
        Ok(Response::new(v1::LogLevel { filter }))
    }

    async fn set_log_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Result<Response<v1::LogLevel>, Status> {
        let logs = self.logs()?;
        let before = logs.get();
        logs.set(&request.get_ref().filter)
            .map_err(|error| match error {
                LogError::Setup(_) => Reason::Internal.status(error.to_string()),
                _ => Reason::InvalidMessage.status(error.to_string()),
            })?;
        let filter = logs.get();
        tracing::warn!(
            before,
            filter,
            uid = uid(&request),
            "the log filter was changed"
        );
        Ok(Response::new(v1::LogLevel { filter }))
    }
}

/// Who asks, as the audit names it.
fn uid<T>(request: &Request<T>) -> String {
    let info = request.extensions().get::<UdsConnectInfo>();
    match info.and_then(|info| info.peer_cred) {
        None => "uid unknown".to_owned(),
        Some(peer) => format!("uid {}", peer.uid()),
    }
}

impl AdminApi {
    fn logs(&self) -> Result<&LogHandle, Status> {
        let none = || Reason::Internal.status("the logs of this process cannot be changed");
        self.logs.as_ref().ok_or_else(none)
    }

    fn check_token(
        &self,
        request: &v1::CreateJoinTokenRequest,
    ) -> Result<(JoinTokenRecord, Duration), Refusal> {
        let spiffe_id = self.check_id(&request.spiffe_id)?;
        let svid_ttl = match request.svid_ttl_seconds {
            0 => self.svid_ttl,
            seconds => Duration::from_secs(seconds),
        };
        check_lifetime(&self.authority, svid_ttl)?;
        let expires_in = match request.expires_in_seconds {
            0 => TOKEN_TIME,
            seconds => Duration::from_secs(seconds),
        };
        if expires_in > MAX_TOKEN_TIME {
            let asked = duration::format(expires_in);
            let message = format!("a join token is good for at most 24 hours, not {asked}");
            return Err(Refusal::new(Reason::LimitExceeded, message));
        }
        if request.services.len() > MAX_SERVICES {
            let message = format!("a join token may list at most {MAX_SERVICES} services");
            return Err(Refusal::new(Reason::LimitExceeded, message));
        }
        let parse = |name: &String| {
            let invalid =
                |error: ServiceNameError| Refusal::new(Reason::InvalidMessage, error.to_string());
            name.parse().map_err(invalid)
        };
        let token = JoinTokenRecord {
            federates_with: check_federation(&request.federates_with, &spiffe_id)?,
            spiffe_id,
            svid_ttl,
            services: request
                .services
                .iter()
                .map(parse)
                .collect::<Result<_, _>>()?,
        };
        Ok((token, expires_in))
    }

    pub(super) fn check_id(&self, text: &str) -> Result<SpiffeId, Refusal> {
        let id = SpiffeId::parse(text).map_err(|error| {
            let text: String = text.chars().take(128).collect();
            let message = format!("{text:?} is not a SPIFFE ID: {error}");
            Refusal::new(Reason::InvalidMessage, message)
        })?;
        let own = self.authority.trust_domain();
        if id.trust_domain() != own || !id.is_workload() {
            let message = format!(
                "{id} is not a workload's ID in trust domain {own}; write spiffe://{own}/ns/<namespace>/sa/<service-account>"
            );
            return Err(Refusal::new(Reason::NotAWorkload, message));
        }
        if is_reserved(&id) {
            let message = format!("{id} is reserved: /sidewind is for the control plane itself");
            return Err(Refusal::new(Reason::NotAWorkload, message));
        }
        Ok(id)
    }
}

/// The foreign trust domains of a join token.
fn check_federation(names: &[String], own: &SpiffeId) -> Result<Vec<TrustDomain>, Refusal> {
    if names.len() > MAX_FEDERATED {
        let message = format!("a join token may name at most {MAX_FEDERATED} trust domains");
        return Err(Refusal::new(Reason::LimitExceeded, message));
    }
    let parse = |name: &String| match TrustDomain::parse(name) {
        Ok(domain) if domain == *own.trust_domain() => {
            Err("is the workload's own trust domain".to_owned())
        }
        Ok(domain) => Ok(domain),
        Err(error) => Err(error.to_string()),
    };
    let refused = |why: String| {
        Refusal::new(
            Reason::InvalidMessage,
            format!("a foreign trust domain: {why}"),
        )
    };
    names
        .iter()
        .map(|name| parse(name).map_err(refused))
        .collect()
}

fn entry(record: StoredRecord) -> v1::AuditEntry {
    v1::AuditEntry {
        id: record.id,
        at_unix: record.at,
        event: record.event,
        outcome: record.outcome,
        detail: record.detail,
        spiffe_id: record.spiffe_id,
        registration: record.registration,
        serial: record.serial,
        not_after_unix: record.not_after,
        caller: record.caller,
        csr_sha256: record.csr_sha256,
    }
}
