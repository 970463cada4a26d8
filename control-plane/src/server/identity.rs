//! `IdentityService`: from gRPC to the issuer and back.

use super::line::Line;
use super::listener::Caller;
use super::subjects::Subjects;
use super::turnstile::{told_when, too_often};
use crate::issuance::issuer::Issuer;
use crate::issuance::jwt::mint::JwtMint;
use crate::issuance::tasks::TaskIssuer;
use crate::registry::Registry;
use crate::store::Registration;
use sidewind_api::Reason;
use sidewind_api::v1;
use sidewind_api::v1::identity_service_server::IdentityService;
use std::sync::Arc;
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub(super) struct IdentityApi {
    issuer: Arc<Issuer>,
    mint: JwtMint,
    tasks: TaskIssuer,
    registry: Arc<Registry>,
    line: Arc<Line>,
    subjects: Arc<Subjects>,
}

impl IdentityApi {
    pub(super) fn new(
        issuer: Arc<Issuer>,
        mint: JwtMint,
        tasks: TaskIssuer,
        registry: Arc<Registry>,
        line: Arc<Line>,
        subjects: Arc<Subjects>,
    ) -> Self {
        Self {
            issuer,
            mint,
            tasks,
            registry,
            line,
            subjects,
        }
    }
}

/// Who is calling. Every connection has one; a request without is a fault of this program.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Reason::Internal.status("the connection has no caller"))
}

#[tonic::async_trait]
impl IdentityService for IdentityApi {
    async fn attest(
        &self,
        request: Request<v1::AttestRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        let caller = caller(&request)?;
        let _turn = self.line.turn().await.map_err(|wait| {
            let message = "too many attestations at once; try again";
            told_when(Reason::Overloaded.status(message), wait)
        })?;
        let request = request.into_inner();
        let address = caller.address.ip();
        let mut told = None;
        let admit = |registration: &Registration| {
            let admitted = self.subjects.attest(registration);
            admitted.map_err(|wait| {
                told = Some(wait);
                too_often("what was attested is attested too often", wait)
            })
        };
        let attested = self.issuer.attest(&request, address, admit).await;
        let (mut response, registration) = attested.map_err(|refusal| match told {
            Some(wait) => told_when(refusal.into(), wait),
            None => refusal.into(),
        })?;
        self.registry.learn_services(&registration);
        response
            .trust_bundles
            .extend(self.registry.federated_for(&registration));
        Ok(Response::new(response))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        let caller = caller(&request)?;
        let (peer, address) = (caller.peer.as_deref(), caller.address.ip());
        let renewed = self.issuer.renew(request.get_ref(), peer, address).await;
        let (mut response, registration) = renewed?;
        // Its document may have got a service since.
        self.registry.learn_services(&registration);
        response
            .trust_bundles
            .extend(self.registry.federated_for(&registration));
        Ok(Response::new(response))
    }

    async fn challenge(
        &self,
        request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.issuer.challenge(caller.address.ip())?))
    }

    async fn mint_jwt_svid(
        &self,
        request: Request<v1::MintJwtSvidRequest>,
    ) -> Result<Response<v1::MintJwtSvidResponse>, Status> {
        let caller = caller(&request)?;
        let (peer, address) = (caller.peer.as_deref(), caller.address.ip());
        let response = self.mint.mint(request.get_ref(), peer, address).await?;
        Ok(Response::new(response))
    }

    async fn issue_task_svid(
        &self,
        request: Request<v1::IssueTaskSvidRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        let caller = caller(&request)?;
        let (peer, address) = (caller.peer.as_deref(), caller.address.ip());
        let response = self.tasks.issue(request.get_ref(), peer, address).await?;
        Ok(Response::new(response))
    }
}
