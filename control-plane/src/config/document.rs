//! Files into documents, documents into resources.

use super::error::Place;
use super::tree::{Find as _, Node, join};
use super::{
    ConfigError, ConfigErrors, Draft, attestor_config, authorization_policy,
    federated_trust_domain, gateway, registration, route, service_entry, tls_route, traffic_policy,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny};
use serde_saphyr::{Location, Spanned};
use std::fmt;
use std::path::Path;

/// Most bytes of one file, and of all together.
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_TOTAL_BYTES: usize = 32 << 20;

/// A file of resources, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Reads the resource files of a directory, in the order of their names. Hidden files are passed over:
/// Kubernetes keeps the bookkeeping of mounted volumes in them.
///
/// # Errors
/// When the directory or a file cannot be read, or is too large.
pub fn read_directory(directory: &Path) -> Result<Vec<SourceFile>, ConfigErrors> {
    let failed = |path: &Path, error: &dyn fmt::Display| {
        ConfigErrors::of_file(
            path.display().to_string(),
            format!("cannot be read: {error}"),
        )
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| failed(directory, &error))? {
        let path = entry.map_err(|error| failed(directory, &error))?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if yaml && !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::new();
    let mut total = 0;
    for path in paths {
        let size = path
            .metadata()
            .map_err(|error| failed(&path, &error))?
            .len();
        if size > MAX_FILE_BYTES {
            let limit = format!("{size} bytes; a file may have at most {MAX_FILE_BYTES}");
            return Err(failed(&path, &limit));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        total += text.len();
        if total > MAX_TOTAL_BYTES {
            let limit = format!("all files together may have at most {MAX_TOTAL_BYTES} bytes");
            return Err(failed(directory, &limit));
        }
        let name = path.display().to_string();
        files.push(SourceFile { name, text });
    }
    Ok(files)
}

impl SourceFile {
    /// The documents of the file, without those that hold nothing but comments. Each begins with the line
    /// that marks its beginning, where there is one.
    pub fn documents(&self) -> impl Iterator<Item = Document<'_>> {
        let mut starts = vec![(0, 0)];
        let mut offset = 0;
        for (line, text) in self.text.split_inclusive('\n').enumerate() {
            // Three dashes at the start of a line end a document even inside a scalar (YAML 1.2.2, 9.1.2).
            let rest = text.strip_prefix("---");
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
                starts.push((offset, line as u64));
            }
            offset += text.len();
        }
        let ends: Vec<usize> = starts.iter().skip(1).map(|(start, _)| *start).collect();
        let ends = ends.into_iter().chain([self.text.len()]);
        starts
            .into_iter()
            .zip(ends)
            .filter_map(|((start, first_line), end)| {
                let text = self.text.get(start..end)?;
                let says_something = |line: &str| {
                    let line = line.strip_prefix("---").unwrap_or(line).trim();
                    !line.is_empty() && !line.starts_with('#')
                };
                let file = self.name.as_str();
                text.lines().any(says_something).then_some(Document {
                    file,
                    first_line,
                    text,
                })
            })
    }
}

/// One document of a file.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    file: &'a str,
    /// Lines of the file before it.
    first_line: u64,
    text: &'a str,
}

/// The API of Sidewind's own resources.
pub(super) const SIDEWIND_API: &str = "sidewind.dev/v1alpha1";
/// The API of Gateway API's resources.
pub(super) const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

impl Document<'_> {
    /// Reads the document by its kind.
    pub(super) fn read_into(self, draft: &mut Draft) -> Result<(), Vec<ConfigError>> {
        let tree: Spanned<Node> = self.parse().map_err(|error| vec![error])?;
        let mut reader = Reader {
            document: self,
            tree,
            errors: Vec::new(),
        };
        let kind = reader.scalar("kind");
        let api = reader.scalar("apiVersion");
        match (api.as_deref(), kind.as_deref()) {
            (Some(SIDEWIND_API), Some("AuthorizationPolicy")) => {
                authorization_policy::read(&mut reader, draft);
            }
            (Some(SIDEWIND_API), Some("ServiceEntry")) => service_entry::read(&mut reader, draft),
            (Some(SIDEWIND_API), Some("TrafficPolicy")) => traffic_policy::read(&mut reader, draft),
            (Some(SIDEWIND_API), Some("Registration")) => registration::read(&mut reader, draft),
            (Some(SIDEWIND_API), Some("AttestorConfig")) => {
                attestor_config::read(&mut reader, draft);
            }
            (Some(SIDEWIND_API), Some("FederatedTrustDomain")) => {
                federated_trust_domain::read(&mut reader, draft);
            }
            (Some(GATEWAY_API), Some("Gateway")) => gateway::read(&mut reader, draft),
            // Stable since version 1.5 of Gateway API.
            (Some(GATEWAY_API | "gateway.networking.k8s.io/v1alpha2"), Some("TLSRoute")) => {
                tls_route::read(&mut reader, draft);
            }
            (Some(SIDEWIND_API), Some("RouteExtension")) => {
                route::read_extension(&mut reader, draft);
            }
            (Some(GATEWAY_API), Some("HTTPRoute")) => route::read_http(&mut reader, draft),
            (Some(GATEWAY_API), Some("GRPCRoute")) => route::read_grpc(&mut reader, draft),
            (None, _) => reader.miss("apiVersion"),
            (_, None) => reader.miss("kind"),
            (Some(api), Some(kind)) => {
                let message = format!(
                    "{kind} of {api} is not one that this version takes; it takes AuthorizationPolicy, ServiceEntry, TrafficPolicy, RouteExtension, Registration, AttestorConfig and FederatedTrustDomain of {SIDEWIND_API}, and HTTPRoute, GRPCRoute, TLSRoute and Gateway of {GATEWAY_API}"
                );
                let at = reader.place_of("kind");
                reader.errors.push(self.error_at(at, "kind", message));
            }
        }
        if reader.errors.is_empty() {
            Ok(())
        } else {
            Err(reader.errors)
        }
    }

    fn parse<T: DeserializeOwned>(self) -> Result<T, ConfigError> {
        let mut options = serde_saphyr::options! {
            strict_booleans: true,
            merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        };
        options.with_snippet = false;
        serde_saphyr::from_str_with_options(self.text, options)
            .map_err(|error| self.error_at(error.location(), "", explain(&error)))
    }

    fn error_at(self, at: Option<Location>, field: &str, message: String) -> ConfigError {
        let place = at.map_or((1, 1), |at| (at.line(), at.column()));
        ConfigError {
            file: self.file.to_owned(),
            place: Some((self.first_line + place.0, place.1)),
            field: field.to_owned(),
            message,
        }
    }
}

/// What a parser's error means for the one who wrote the file.
fn explain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    match text {
        "invalid u16" => "must be a whole number from 0 to 65535".to_owned(),
        "invalid u32" | "invalid u64" => "must be a whole number".to_owned(),
        "expected sequence start" => "must be a list, like [a, b]".to_owned(),
        "expected mapping start" => "must hold fields, like {name: value}".to_owned(),
        "expected string scalar" => "must be a text".to_owned(),
        other => match other.strip_prefix("duplicate mapping key: ") {
            Some(key) => {
                let key = key.split(',').next().unwrap_or(key);
                format!("field `{key}` is given twice")
            }
            None => other.to_owned(),
        },
    }
}

/// A document being read into a resource; gathers everything that is wrong with it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    document: Document<'a>,
    tree: Spanned<Node>,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    /// The document as a kind's own type.
    pub(super) fn typed<T: DeserializeOwned>(&mut self) -> Option<T> {
        match self.document.parse::<T>() {
            Ok(value) => Some(value),
            Err(mut error) => {
                let place = error.place.map_or((1, 1), |(line, column)| {
                    (line - self.document.first_line, column)
                });
                error.field = self.tree.field_at(place);
                let missing = error.message.strip_prefix("missing field `");
                if let Some(name) = missing.and_then(|rest| rest.strip_suffix('`')) {
                    let parent = self.tree.value_at(place).unwrap_or_default();
                    error.field = join(&parent, name);
                    error.message = "is missing".to_owned();
                }
                self.errors.push(error);
                None
            }
        }
    }

    /// Notes that something is wrong at a place.
    pub(super) fn refuse<T>(&mut self, at: &Spanned<T>, message: impl fmt::Display) {
        let error = self.place(at).error(message.to_string());
        self.errors.push(error);
    }

    /// Where a value stands, for what is found out about it later.
    pub(super) fn place<T>(&self, at: &Spanned<T>) -> Place {
        let location = at.referenced;
        let place = (location.line(), location.column());
        let field = self.tree.value_at(place);
        Place {
            file: self.document.file.to_owned(),
            line: self.document.first_line + location.line(),
            column: location.column(),
            field: field.unwrap_or_else(|| self.tree.field_at(place)),
        }
    }

    /// Takes a name that only one resource may have.
    pub(super) fn take<T>(&mut self, draft: &mut Draft, at: &Spanned<T>, what: String) {
        let line = self.document.first_line + at.referenced.line();
        let place = format!("{}:{line}", self.document.file);
        if let Err(message) = draft.take(what, place) {
            self.refuse(at, message);
        }
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_sound(&self) -> bool {
        self.errors.is_empty()
    }

    fn field(&self, name: &str) -> Option<&Spanned<Node>> {
        let Node::Map(fields) = &self.tree.value else {
            return None;
        };
        let found = fields.iter().find(|(key, _)| key.value == name);
        found.map(|(_, value)| value)
    }

    fn scalar(&self, name: &str) -> Option<String> {
        match &self.field(name)?.value {
            Node::Scalar(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn miss(&mut self, field: &str) {
        let error = self.document.error_at(None, field, "is missing".to_owned());
        self.errors.push(error);
    }

    fn place_of(&self, name: &str) -> Option<Location> {
        self.field(name).map(|value| value.referenced)
    }
}

/// A document of a kind that has its own `spec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Resource<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: S,
    /// What a cluster says of it, and nobody else.
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

/// What every resource has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    name: Spanned<String>,
    #[serde(default)]
    namespace: Option<Spanned<String>>,
    #[serde(default)]
    creation_timestamp: Option<String>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, Spanned<String>>>,
    // Read for its form alone.
    #[serde(default, rename = "labels")]
    _labels: Option<std::collections::BTreeMap<String, String>>,
    // What an API server adds (ObjectMeta of Kubernetes), and `kubectl get -o yaml` shows.
    #[serde(default, rename = "uid")]
    _uid: IgnoredAny,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: IgnoredAny,
    #[serde(default, rename = "generation")]
    _generation: IgnoredAny,
    #[serde(default, rename = "generateName")]
    _generate_name: IgnoredAny,
    #[serde(default, rename = "managedFields")]
    _managed_fields: IgnoredAny,
    #[serde(default, rename = "ownerReferences")]
    _owner_references: IgnoredAny,
    #[serde(default, rename = "finalizers")]
    _finalizers: IgnoredAny,
    #[serde(default, rename = "selfLink")]
    _self_link: IgnoredAny,
    #[serde(default, rename = "deletionTimestamp")]
    _deletion_timestamp: IgnoredAny,
    #[serde(default, rename = "deletionGracePeriodSeconds")]
    _deletion_grace_period_seconds: IgnoredAny,
}

impl Metadata {
    /// The value of an annotation, where it is there.
    pub(super) fn annotation(&self, name: &str) -> Option<&Spanned<String>> {
        self.annotations.as_ref()?.get(name)
    }

    /// When the resource's cluster has it from, where it says so.
    pub(super) fn created(&self) -> Option<&str> {
        self.creation_timestamp.as_deref()
    }

    /// Checks the name, takes it, and gives it back as namespace and name.
    pub(super) fn check(
        &self,
        kind: &str,
        reader: &mut Reader<'_>,
        draft: &mut Draft,
    ) -> (String, String) {
        let namespace = self
            .namespace
            .as_ref()
            .map_or("default", |n| n.value.as_str());
        for label in [Some(&self.name), self.namespace.as_ref()]
            .into_iter()
            .flatten()
        {
            // A resource's name may have dots (RFC 1123 subdomain); its namespace may not.
            if !sidewind_api::service::is_host(&label.value) {
                reader.refuse(label, "must be of lower-case letters, digits, `-` and `.`");
            }
        }
        let name = &self.name.value;
        let what = format!("{kind} {namespace}/{name}");
        reader.take(draft, &self.name, what);
        (namespace.to_owned(), name.clone())
    }
}

/// Reads a field that may be left out, but may not be there and empty.
pub(super) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}
