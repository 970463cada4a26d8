//! The JWT profile: which keys sign tokens, and whether a token is good.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use sidewind_identity::TrustDomain;
use sidewind_identity::jwt::bundle::JwtBundles;
use sidewind_identity::jwt::svid::JwtSvid;
use tonic::Status;

use super::proto::{JwtBundlesResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse};
use super::push::View;
use super::state::Present;

/// A key set without keys.
const NO_KEYS: &[u8] = br#"{"keys":[]}"#;

/// What `FetchJWTBundles` streams.
#[derive(PartialEq)]
pub(super) struct JwtKeys {
    own: TrustDomain,
    bundles: Arc<JwtBundles>,
}

impl View for JwtKeys {
    type Message = JwtBundlesResponse;

    fn of(present: &Present) -> Result<Self, Status> {
        let credentials = present.credentials()?;
        Ok(Self {
            own: credentials.svid.id().trust_domain().clone(),
            bundles: credentials.jwt_bundles.clone(),
        })
    }

    fn message(&self) -> Result<JwtBundlesResponse, Status> {
        let with_keys = self
            .bundles
            .iter()
            .filter(|bundle| !bundle.authorities().is_empty());
        let mut bundles: BTreeMap<_, _> = with_keys
            .map(|bundle| {
                (
                    bundle.trust_domain().id().to_string(),
                    bundle.to_jwks().into_bytes(),
                )
            })
            .collect();
        // The own trust domain is always there, so that the message is never empty, which clients would refuse.
        bundles
            .entry(self.own.id().to_string())
            .or_insert_with(|| NO_KEYS.to_vec());
        Ok(JwtBundlesResponse { bundles })
    }
}

/// Answers `ValidateJWTSVID`.
///
/// # Errors
/// `InvalidArgument` with the rule that the token breaks.
pub(super) fn validate(
    present: &Present,
    request: &ValidateJwtsvidRequest,
) -> Result<ValidateJwtsvidResponse, Status> {
    if request.audience.is_empty() {
        return Err(Status::invalid_argument(
            "the audience is missing: say what the token must be for",
        ));
    }
    if request.svid.is_empty() {
        return Err(Status::invalid_argument("the token is missing"));
    }
    let bundles = &present.credentials()?.jwt_bundles;
    let svid = JwtSvid::validate(&request.svid, &request.audience, bundles, present.now())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    if present.is_banned(svid.id()) {
        return Err(Status::invalid_argument(format!("{} is banned", svid.id())));
    }
    Ok(ValidateJwtsvidResponse {
        spiffe_id: svid.id().to_string(),
        claims: Some(structure(svid.claims())),
    })
}

/// JSON as protobuf's well-known types say it.
fn structure(members: &serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct {
        fields: members
            .iter()
            .map(|(name, member)| (name.clone(), value(member)))
            .collect(),
    }
}

fn value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(truth) => Kind::BoolValue(*truth),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(elements) => Kind::ListValue(ListValue {
            values: elements.iter().map(value).collect(),
        }),
        serde_json::Value::Object(members) => Kind::StructValue(structure(members)),
    };
    Value { kind: Some(kind) }
}
