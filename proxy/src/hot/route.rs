use http::Request;
use sidewind_api::v1;

use crate::{retry::RetryPolicy, route::RouteTable};

/// A table of routes.
#[derive(Debug)]
pub struct Routing(RouteTable);

impl Default for Routing {
    /// Forty exact paths, forty prefixes, nineteen rules with a header and a query parameter to match.
    fn default() -> Self {
        use v1::route_match::Path;
        let path = |path| v1::RouteMatch {
            path: Some(path),
            ..Default::default()
        };
        let exact = (20..60).map(|n| path(Path::Exact(format!("/exact/{n}"))));
        let prefixes = (20..60).map(|n| path(Path::Prefix(format!("/prefix/{n}"))));
        let named = |name: &str, value: String| v1::RouteNamedMatch {
            name: name.to_owned(),
            value: Some(v1::route_named_match::Value::Exact(value)),
        };
        let detailed = (0..19).map(|n: u32| v1::RouteMatch {
            path: Some(Path::Prefix("/detailed".to_owned())),
            headers: vec![named("x-team", "data".to_owned())],
            query_params: vec![named("tenant", n.to_string())],
            ..Default::default()
        });
        Self::new(exact.chain(prefixes).chain(detailed))
    }
}

impl Routing {
    fn new(matches: impl Iterator<Item = v1::RouteMatch>) -> Self {
        let rule = |matched| v1::RouteRule {
            matches: vec![matched],
            ..Default::default()
        };
        let table = v1::RouteTable {
            rules: matches.map(rule).collect(),
        };
        let table = RouteTable::compile(&table, &|_| RetryPolicy::default());
        Self(table.unwrap_or_default())
    }

    /// One rule for every request.
    pub fn trivial() -> Self {
        Self::new(std::iter::once(v1::RouteMatch::default()))
    }

    /// A request for a path.
    pub fn request(path: &str) -> Request<()> {
        let request = Request::get(path).header("host", "api.data");
        let request = request.header("x-team", "data").body(());
        request.unwrap_or_default()
    }

    /// Whether a rule matches.
    pub fn finds(&self, request: &Request<()>) -> bool {
        self.0.select(request).is_some()
    }
}
