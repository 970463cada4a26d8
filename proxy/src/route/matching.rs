//! What a rule asks of a request beside its path.

use std::{borrow::Cow, cmp::Reverse};

use http::{
    HeaderName, HeaderValue, Method, Request,
    header::{COOKIE, HOST},
};
use sidewind_api::{Expression, v1};

use super::{RuleError, table::expression};

/// All of them have to hold.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    method: Option<Method>,
    headers: Vec<(HeaderName, Value)>,
    query: Vec<(Box<str>, Value)>,
}

#[derive(Debug)]
enum Value {
    Exact(Box<[u8]>),
    Expression(Expression),
}

impl Conditions {
    pub(super) fn compile(matched: &v1::RouteMatch) -> Result<Self, RuleError> {
        let method = match matched.method.as_str() {
            "" => None,
            method => Some(
                Method::from_bytes(method.as_bytes())
                    .map_err(|_| RuleError::Method(method.to_owned()))?,
            ),
        };
        let mut headers = Vec::new();
        for header in &matched.headers {
            let name = HeaderName::try_from(&header.name)
                .map_err(|_| RuleError::Header(header.name.clone()))?;
            headers.push((name, Value::compile(header)?));
        }
        let mut query = Vec::new();
        for parameter in &matched.query_params {
            query.push((parameter.name.as_str().into(), Value::compile(parameter)?));
        }
        Ok(Self {
            method,
            headers,
            query,
        })
    }

    /// Lower is more particular.
    pub(super) fn rank(&self) -> (bool, Reverse<usize>, Reverse<usize>) {
        (
            self.method.is_none(),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
        )
    }

    pub(super) fn match_all<B>(&self, request: &Request<B>) -> bool {
        self.method
            .as_ref()
            .is_none_or(|method| method == request.method())
            && self.headers.iter().all(|(name, value)| {
                header(request, name).is_some_and(|found| value.matches(&found))
            })
            && (self.query.is_empty()
                || self.match_query(request.uri().query().unwrap_or_default()))
    }

    fn match_query(&self, query: &str) -> bool {
        self.query
            .iter()
            .all(|(name, value)| parameter(query, name).is_some_and(|found| value.matches(&found)))
    }
}

impl Value {
    fn compile(matched: &v1::RouteNamedMatch) -> Result<Self, RuleError> {
        use v1::route_named_match::Value as Kind;
        match &matched.value {
            Some(Kind::Exact(text)) => Ok(Self::Exact(text.as_bytes().into())),
            Some(Kind::Regex(text)) => expression(text).map(Self::Expression),
            None => Err(RuleError::Unknown("a match")),
        }
    }

    fn matches(&self, found: &[u8]) -> bool {
        match self {
            Self::Exact(expected) => **expected == *found,
            Self::Expression(expression) => expression.matches(found),
        }
    }
}

/// The value of a field, several joined as RFC 9110, section 5.3, has them mean one; `host` is what `:authority` is
/// in HTTP/2.
fn header<'a, B>(request: &'a Request<B>, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    if *name == HOST
        && let Some(authority) = request.uri().authority()
    {
        return Some(Cow::Borrowed(authority.as_str().as_bytes()));
    }
    let mut values = request.headers().get_all(name).iter();
    let first = values.next()?.as_bytes();
    let separator: &[u8] = if *name == COOKIE { b"; " } else { b"," };
    let join = |mut joined: Vec<u8>, value: &HeaderValue| {
        joined.extend_from_slice(separator);
        joined.extend_from_slice(value.as_bytes());
        joined
    };
    match values.next() {
        None => Some(Cow::Borrowed(first)),
        Some(second) => {
            let joined = join(first.to_vec(), second);
            Some(Cow::Owned(values.fold(joined, join)))
        }
    }
}

/// The value of the first query parameter of that name, as forms encode it (WHATWG URL, section 5.1).
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decoded(found) == *name.as_bytes()).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        decoded.push(match (byte, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => *byte,
        });
    }
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}
