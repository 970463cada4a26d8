//! What a rule does to requests and responses.

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::HOST,
    uri::{Authority, PathAndQuery},
};
use sidewind_api::{header_field::may_change, v1};

use super::{Mirror, RuleError, path::PathChange, redirect::Redirect};
use crate::http::{Body, headers::BadRequest};

/// The filters of a rule or of a backend.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    request: Vec<HeaderChange>,
    response: Vec<HeaderChange>,
    pub(crate) redirect: Option<Redirect>,
    rewrite: Option<Rewrite>,
    pub(super) mirrors: Vec<Mirror>,
}

#[derive(Debug, Default)]
struct HeaderChange {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

#[derive(Debug)]
struct Rewrite {
    host: Option<(Authority, HeaderValue)>,
    path: Option<PathChange>,
}

impl Filters {
    pub(super) fn compile(filters: &[v1::RouteFilter]) -> Result<Self, RuleError> {
        use v1::route_filter::Filter;
        let mut compiled = Self::default();
        for filter in filters {
            match &filter.filter {
                Some(Filter::RequestHeaders(change)) => {
                    compiled.request.push(HeaderChange::compile(change)?);
                }
                Some(Filter::ResponseHeaders(change)) => {
                    compiled.response.push(HeaderChange::compile(change)?);
                }
                Some(Filter::Redirect(redirect)) => {
                    compiled.redirect = Some(Redirect::compile(redirect)?);
                }
                Some(Filter::Rewrite(rewrite)) => {
                    compiled.rewrite = Some(Rewrite::compile(rewrite)?);
                }
                Some(Filter::Mirror(mirror)) => compiled.mirrors.push(Mirror::compile(mirror)?),
                // A filter that is passed over is a rule that does something else than it says.
                None => return Err(RuleError::Unknown("a filter")),
            }
        }
        Ok(compiled)
    }

    /// Changes a request's header fields, host and path; `prefix` bytes of the path were matched by a prefix.
    pub(crate) fn change_request(
        &self,
        request: &mut Request<Body>,
        prefix: usize,
    ) -> Result<(), BadRequest> {
        for change in &self.request {
            change.apply(request.headers_mut());
        }
        match &self.rewrite {
            Some(rewrite) => rewrite.apply(request, prefix),
            None => Ok(()),
        }
    }

    /// Changes a response's header fields.
    pub(crate) fn change_response(&self, response: &mut Response<Body>) {
        for change in &self.response {
            change.apply(response.headers_mut());
        }
    }
}

impl HeaderChange {
    fn compile(change: &v1::HeaderModifier) -> Result<Self, RuleError> {
        let fields = |fields: &[v1::HttpHeader]| fields.iter().map(field).collect();
        Ok(Self {
            set: Result::from_iter::<Vec<_>>(fields(&change.set))?,
            add: Result::from_iter::<Vec<_>>(fields(&change.add))?,
            remove: change
                .remove
                .iter()
                .map(|name| field_name(name))
                .collect::<Result<_, _>>()?,
        })
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn field(field: &v1::HttpHeader) -> Result<(HeaderName, HeaderValue), RuleError> {
    let value =
        HeaderValue::try_from(&field.value).map_err(|_| RuleError::Header(field.value.clone()))?;
    Ok((field_name(&field.name)?, value))
}

fn field_name(name: &str) -> Result<HeaderName, RuleError> {
    let refused = || RuleError::Header(name.to_owned());
    let name = HeaderName::try_from(name).map_err(|_| refused())?;
    match may_change(name.as_str()) {
        true => Ok(name),
        false => Err(refused()),
    }
}

impl Rewrite {
    fn compile(rewrite: &v1::UrlRewrite) -> Result<Self, RuleError> {
        let host = match rewrite.hostname.as_str() {
            "" => None,
            host => {
                let refused = || RuleError::Location(host.to_owned());
                let authority = Authority::try_from(host).map_err(|_| refused())?;
                let value = HeaderValue::try_from(host).map_err(|_| refused())?;
                Some((authority, value))
            }
        };
        let path = rewrite.path.as_ref().map(PathChange::compile).transpose()?;
        Ok(Self { host, path })
    }

    fn apply(&self, request: &mut Request<Body>, prefix: usize) -> Result<(), BadRequest> {
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        if let Some(path) = &self.path {
            let old = target.path_and_query.take();
            let old = old.unwrap_or_else(|| PathAndQuery::from_static("/"));
            let changed = path.apply_with_query(&Uri::from(old), prefix);
            let changed = PathAndQuery::try_from(changed).map_err(|_| BadRequest::InvalidTarget)?;
            target.path_and_query = Some(changed);
        }
        if let Some((authority, value)) = &self.host {
            // The one that the request has is the one that counts: the target's before the field.
            if target.authority.is_some() {
                target.authority = Some(authority.clone());
                request.headers_mut().remove(HOST);
            } else {
                request.headers_mut().insert(HOST, value.clone());
            }
        }
        *request.uri_mut() = Uri::from_parts(target).map_err(|_| BadRequest::InvalidTarget)?;
        Ok(())
    }
}
