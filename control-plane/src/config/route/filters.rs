//! What rules and backends do to requests and responses.

use super::super::document::{Reader, present};
use super::Parent;
use super::parts::{BackendReference, MAX_FIELDS, at_most, check_port, is_token, mirrored, one_of};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::service::is_host;
use sidewind_api::{header_field::may_change, v1};
use std::collections::HashSet;

/// The group and kind of what the Gateway API has no field for.
const EXTENSION_GROUP: &str = "sidewind.dev";
const EXTENSION_KIND: &str = "RouteExtension";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterSpec {
    #[serde(rename = "type")]
    kind: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    request_header_modifier: Option<Spanned<HeaderModifier>>,
    #[serde(default, deserialize_with = "present")]
    response_header_modifier: Option<Spanned<HeaderModifier>>,
    #[serde(default, deserialize_with = "present")]
    request_mirror: Option<Spanned<RequestMirror>>,
    #[serde(default, deserialize_with = "present")]
    request_redirect: Option<Spanned<RequestRedirect>>,
    #[serde(default, deserialize_with = "present")]
    url_rewrite: Option<Spanned<UrlRewrite>>,
    #[serde(default, deserialize_with = "present")]
    extension_ref: Option<Spanned<ExtensionRef>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HeaderModifier {
    #[serde(default, deserialize_with = "present")]
    set: Option<Spanned<Vec<HeaderField>>>,
    #[serde(default, deserialize_with = "present")]
    add: Option<Spanned<Vec<HeaderField>>>,
    #[serde(default, deserialize_with = "present")]
    remove: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HeaderField {
    name: Spanned<String>,
    value: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestMirror {
    backend_ref: Spanned<BackendReference>,
    #[serde(default, deserialize_with = "present")]
    percent: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    fraction: Option<Spanned<Fraction>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fraction {
    numerator: u32,
    #[serde(default, deserialize_with = "present")]
    denominator: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestRedirect {
    #[serde(default, deserialize_with = "present")]
    scheme: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    hostname: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    path: Option<Spanned<PathModifier>>,
    #[serde(default, deserialize_with = "present")]
    port: Option<Spanned<u16>>,
    #[serde(default, deserialize_with = "present")]
    status_code: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UrlRewrite {
    #[serde(default, deserialize_with = "present")]
    hostname: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    path: Option<Spanned<PathModifier>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PathModifier {
    #[serde(rename = "type")]
    kind: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    replace_full_path: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    replace_prefix_match: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExtensionRef {
    group: Spanned<String>,
    kind: Spanned<String>,
    name: Spanned<String>,
}

/// Where filters stand, which decides what they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// A rule of an HTTPRoute, and whether all its matches are of prefixes.
    Http {
        prefixes: bool,
    },
    Grpc,
    /// A backend of either.
    Backend,
}

/// Filters, and the extension that a rule names among them.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) filters: Vec<v1::RouteFilter>,
    pub(super) extension: Option<Spanned<String>>,
    /// Whether the rule answers by itself.
    pub(super) redirects: bool,
}

pub(super) fn read(
    reader: &mut Reader<'_>,
    specs: Option<&Spanned<Vec<Spanned<FilterSpec>>>>,
    level: Level,
    parents: &[Parent],
    namespace: &str,
) -> Read {
    let mut read = Read::default();
    let Some(specs) = specs else { return read };
    at_most(reader, specs, MAX_FIELDS);
    let mut kinds = HashSet::new();
    for spec in &specs.value {
        let kind = &spec.value.kind;
        // All others can be there once; two would contradict each other.
        if kind.value != "RequestMirror" && !kinds.insert(kind.value.as_str()) {
            reader.refuse(kind, "is there twice");
        }
        one(reader, &spec.value, level, parents, namespace, &mut read);
    }
    let both = kinds.contains("RequestRedirect") && kinds.contains("URLRewrite");
    if both {
        reader.refuse(specs, "must not have both RequestRedirect and URLRewrite");
    }
    read
}

fn one(
    reader: &mut Reader<'_>,
    spec: &FilterSpec,
    level: Level,
    parents: &[Parent],
    namespace: &str,
    read: &mut Read,
) {
    use v1::route_filter::Filter;
    if !has_its_field_alone(reader, spec) {
        return;
    }
    let kind = &spec.kind;
    let http = matches!(level, Level::Http { .. });
    let filter = match kind.value.as_str() {
        "RequestHeaderModifier" => {
            let change = spec.request_header_modifier.as_ref();
            change.map(|change| Filter::RequestHeaders(header_modifier(reader, change)))
        }
        "ResponseHeaderModifier" => {
            let change = spec.response_header_modifier.as_ref();
            change.map(|change| Filter::ResponseHeaders(header_modifier(reader, change)))
        }
        "RequestMirror" if level != Level::Backend => spec
            .request_mirror
            .as_ref()
            .and_then(|mirror| request_mirror(reader, mirror, parents, namespace))
            .map(Filter::Mirror),
        "RequestRedirect" if http => {
            read.redirects = true;
            let redirect = spec.request_redirect.as_ref();
            redirect.map(|redirect| Filter::Redirect(request_redirect(reader, redirect, level)))
        }
        "URLRewrite" if http => {
            let rewrite = spec.url_rewrite.as_ref();
            rewrite.map(|rewrite| Filter::Rewrite(url_rewrite(reader, rewrite, level)))
        }
        "ExtensionRef" if level != Level::Backend => {
            read.extension = spec
                .extension_ref
                .as_ref()
                .and_then(|reference| extension_ref(reader, reference));
            None
        }
        "RequestMirror" | "RequestRedirect" | "URLRewrite" | "ExtensionRef" => {
            reader.refuse(kind, "is no filter that may stand here");
            None
        }
        _ => {
            reader.refuse(
                kind,
                "must be one of RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite, ExtensionRef",
            );
            None
        }
    };
    read.filters.extend(filter.map(|filter| v1::RouteFilter {
        filter: Some(filter),
    }));
}

/// A filter has the field that its type says and no other.
fn has_its_field_alone(reader: &mut Reader<'_>, spec: &FilterSpec) -> bool {
    let fields = [
        (
            "RequestHeaderModifier",
            "requestHeaderModifier",
            spec.request_header_modifier.is_some(),
        ),
        (
            "ResponseHeaderModifier",
            "responseHeaderModifier",
            spec.response_header_modifier.is_some(),
        ),
        (
            "RequestMirror",
            "requestMirror",
            spec.request_mirror.is_some(),
        ),
        (
            "RequestRedirect",
            "requestRedirect",
            spec.request_redirect.is_some(),
        ),
        ("URLRewrite", "urlRewrite", spec.url_rewrite.is_some()),
        ("ExtensionRef", "extensionRef", spec.extension_ref.is_some()),
    ];
    let kind = &spec.kind;
    for (of, field, given) in fields {
        let wanted = of == kind.value;
        if wanted && !given {
            reader.refuse(kind, format!("needs the field `{field}`"));
            return false;
        }
        if given && !wanted {
            reader.refuse(kind, format!("does not go with the field `{field}`"));
            return false;
        }
    }
    true
}

fn header_modifier(
    reader: &mut Reader<'_>,
    change: &Spanned<HeaderModifier>,
) -> v1::HeaderModifier {
    let HeaderModifier { set, add, remove } = &change.value;
    let mut names = HashSet::new();
    let mut read = v1::HeaderModifier::default();
    for (list, into) in [(set, &mut read.set), (add, &mut read.add)] {
        let Some(list) = list else { continue };
        at_most(reader, list, MAX_FIELDS);
        for field in &list.value {
            let name = field_name(reader, &field.name, &mut names);
            let value = &field.value;
            let plain = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte) || byte >= 0x80;
            if value.value.is_empty() || value.value.len() > 4096 || !value.value.bytes().all(plain)
            {
                reader.refuse(value, "must be 1 to 4096 characters with no line break");
            }
            let value = value.value.clone();
            into.push(v1::HttpHeader { name, value });
        }
    }
    if let Some(remove) = remove {
        at_most(reader, remove, MAX_FIELDS);
        for name in &remove.value {
            let name = field_name(reader, name, &mut names);
            read.remove.push(name);
        }
    }
    if names.is_empty() {
        reader.refuse(change, "must set, add or remove something");
    }
    read
}

fn field_name(
    reader: &mut Reader<'_>,
    name: &Spanned<String>,
    names: &mut HashSet<String>,
) -> String {
    let lower = name.value.to_ascii_lowercase();
    if lower.is_empty() || !lower.bytes().all(is_token) {
        reader.refuse(name, "must be the name of a header field");
    } else if !may_change(&lower) {
        let message = match lower.as_str() {
            "host" => "is not for this filter; URLRewrite has `hostname`",
            _ => "is not for routes: it concerns one connection, or says who the caller is",
        };
        reader.refuse(name, message);
    }
    if !names.insert(lower.clone()) {
        reader.refuse(name, "is named twice in this filter");
    }
    lower
}

fn request_mirror(
    reader: &mut Reader<'_>,
    mirror: &Spanned<RequestMirror>,
    parents: &[Parent],
    namespace: &str,
) -> Option<v1::RequestMirror> {
    let RequestMirror {
        backend_ref,
        percent,
        fraction,
    } = &mirror.value;
    let (numerator, denominator) = match (percent, fraction) {
        (Some(_), Some(fraction)) => {
            reader.refuse(fraction, "must not be there beside `percent`");
            (None, 0)
        }
        (Some(percent), None) => {
            if percent.value > 100 {
                reader.refuse(percent, "must be from 0 to 100");
            }
            (Some(percent.value), 100)
        }
        (None, Some(fraction)) => {
            let denominator = fraction.value.denominator.as_ref().map_or(100, |d| d.value);
            if denominator == 0 || fraction.value.numerator > denominator {
                reader.refuse(fraction, "must be at most 1, with a denominator above 0");
            }
            (Some(fraction.value.numerator), denominator)
        }
        (None, None) => (None, 0),
    };
    Some(v1::RequestMirror {
        backend: Some(mirrored(reader, backend_ref, parents, namespace)?),
        numerator,
        denominator,
    })
}

fn request_redirect(
    reader: &mut Reader<'_>,
    redirect: &Spanned<RequestRedirect>,
    level: Level,
) -> v1::RequestRedirect {
    let RequestRedirect {
        scheme,
        hostname,
        path,
        port,
        status_code,
    } = &redirect.value;
    check_port(reader, port.as_ref());
    if let Some(scheme) = scheme {
        one_of(reader, scheme, &[("http", ()), ("https", ())]);
    }
    if let Some(status) = status_code
        && ![301, 302, 303, 307, 308].contains(&status.value)
    {
        reader.refuse(status, "must be one of 301, 302, 303, 307, 308");
    }
    v1::RequestRedirect {
        scheme: scheme
            .as_ref()
            .map_or(String::new(), |scheme| scheme.value.clone()),
        hostname: host(reader, hostname.as_ref()),
        path: path
            .as_ref()
            .and_then(|path| path_modifier(reader, path, level)),
        port: port.as_ref().map_or(0, |port| port.value.into()),
        status: status_code.as_ref().map_or(0, |status| status.value),
    }
}

fn url_rewrite(
    reader: &mut Reader<'_>,
    rewrite: &Spanned<UrlRewrite>,
    level: Level,
) -> v1::UrlRewrite {
    let UrlRewrite { hostname, path } = &rewrite.value;
    if hostname.is_none() && path.is_none() {
        reader.refuse(rewrite, "must have `hostname` or `path`");
    }
    v1::UrlRewrite {
        hostname: host(reader, hostname.as_ref()),
        path: path
            .as_ref()
            .and_then(|path| path_modifier(reader, path, level)),
    }
}

fn host(reader: &mut Reader<'_>, hostname: Option<&Spanned<String>>) -> String {
    let Some(hostname) = hostname else {
        return String::new();
    };
    if !is_host(&hostname.value) {
        reader.refuse(hostname, "must be a host name in lower case, with no port");
    }
    hostname.value.clone()
}

fn path_modifier(
    reader: &mut Reader<'_>,
    path: &Spanned<PathModifier>,
    level: Level,
) -> Option<v1::PathModifier> {
    use v1::path_modifier::Modifier;
    let PathModifier {
        kind,
        replace_full_path,
        replace_prefix_match,
    } = &path.value;
    let prefixed = one_of(
        reader,
        kind,
        &[("ReplaceFullPath", false), ("ReplacePrefixMatch", true)],
    )?;
    let (text, other) = match prefixed {
        true => (replace_prefix_match, replace_full_path),
        false => (replace_full_path, replace_prefix_match),
    };
    let (Some(text), None) = (text, other) else {
        let field = if prefixed {
            "replacePrefixMatch"
        } else {
            "replaceFullPath"
        };
        reader.refuse(kind, format!("needs the field `{field}`, and no other"));
        return None;
    };
    let plain = |byte: u8| (b'!'..=b'~').contains(&byte) && !matches!(byte, b'?' | b'#');
    let rooted = text.value.is_empty() || text.value.starts_with('/');
    if !rooted || !text.value.bytes().all(plain) || text.value.len() > 1024 {
        reader.refuse(text, "must be a path that begins with `/`, with no query");
    }
    if prefixed && level != (Level::Http { prefixes: true }) {
        reader.refuse(
            kind,
            "needs matches of type PathPrefix alone, which say what it replaces",
        );
    }
    Some(v1::PathModifier {
        modifier: Some(match prefixed {
            true => Modifier::Prefix(text.value.clone()),
            false => Modifier::Full(text.value.clone()),
        }),
    })
}

fn extension_ref(
    reader: &mut Reader<'_>,
    reference: &Spanned<ExtensionRef>,
) -> Option<Spanned<String>> {
    let ExtensionRef { group, kind, name } = &reference.value;
    if group.value != EXTENSION_GROUP || kind.value != EXTENSION_KIND {
        reader.refuse(
            reference,
            format!("must be `group: {EXTENSION_GROUP}` and `kind: {EXTENSION_KIND}`"),
        );
        return None;
    }
    Some(name.clone())
}
