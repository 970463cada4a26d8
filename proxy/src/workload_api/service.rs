//! The SPIFFE Workload API: which call is answered by what.

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use sidewind_identity::SpiffeId;

use super::gate::MAX_MESSAGE_BYTES;
use super::jwt::{self, JwtKeys};
use super::proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use super::proto::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
    X509svidRequest, X509svidResponse,
};
use super::push::{Pushed, push};
use super::state::Present;
use super::tokens::Tokens;
use super::x509::{X509Bundles, X509Svids};

/// The service over a state and a source of tokens.
pub(super) struct WorkloadService {
    present: watch::Receiver<Present>,
    tokens: Tokens,
}

pub(super) fn server(
    present: watch::Receiver<Present>,
    tokens: Tokens,
) -> SpiffeWorkloadApiServer<WorkloadService> {
    SpiffeWorkloadApiServer::new(WorkloadService { present, tokens })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadService {
    type FetchX509SVIDStream = Pushed<X509svidResponse>;
    type FetchX509BundlesStream = Pushed<X509BundlesResponse>;
    type FetchJWTBundlesStream = Pushed<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        push::<X509Svids>(self.present.clone()).map(Response::new)
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        push::<X509Bundles>(self.present.clone()).map(Response::new)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let request = request.into_inner();
        let present = self.present.borrow().clone();
        let own = present.svid()?.id().clone();
        if !request.spiffe_id.is_empty() {
            let asked = SpiffeId::parse(&request.spiffe_id).map_err(|error| {
                Status::invalid_argument(format!("spiffe_id is not a SPIFFE ID: {error}"))
            })?;
            if asked != own {
                return Err(Status::permission_denied(format!(
                    "no identity issued: this workload is {own}, not {asked}"
                )));
            }
        }
        let token = self.tokens.get(&present, request.audience).await?;
        Ok(Response::new(JwtsvidResponse {
            svids: vec![Jwtsvid {
                spiffe_id: own.to_string(),
                svid: token.as_str().to_owned(),
                hint: String::new(),
            }],
        }))
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        push::<JwtKeys>(self.present.clone()).map(Response::new)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let present = self.present.borrow().clone();
        jwt::validate(&present, request.get_ref()).map(Response::new)
    }
}
