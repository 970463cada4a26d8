//! The access log of a sidecar, as the tests read it.

use serde_json::Value;

/// One line of an access log.
#[derive(Clone, Debug)]
pub struct AccessRecord(Value);

impl AccessRecord {
    /// A field's list of objects; empty where there is none.
    pub fn list(&self, field: &str) -> Vec<Value> {
        self.0[field].as_array().cloned().unwrap_or_default()
    }

    /// All records in a text; other lines are left out.
    pub fn all(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        matches!(value.get("kind")?.as_str()?, "request" | "connection").then_some(Self(value))
    }

    /// A field, with dots between the steps; empty where it is not there.
    pub fn text(&self, field: &str) -> String {
        match self.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// A number; 0 where it is not there.
    pub fn number(&self, field: &str) -> u64 {
        self.get(field).and_then(Value::as_u64).unwrap_or_default()
    }

    fn get(&self, field: &str) -> Option<&Value> {
        field
            .split('.')
            .try_fold(&self.0, |value, step| value.get(step))
    }

    /// Whether it is of an HTTP request (and not of a connection).
    pub fn is_request(&self) -> bool {
        self.text("kind") == "request"
    }

    /// `inbound` or `outbound`.
    pub fn direction(&self) -> String {
        self.text("direction")
    }

    /// The path of a request.
    pub fn path(&self) -> String {
        self.text("path")
    }

    /// The status of a response; 0 without one.
    pub fn status(&self) -> u64 {
        self.number("status")
    }

    /// The stable error code; empty without one.
    pub fn error(&self) -> String {
        self.text("error")
    }

    /// The caller's SPIFFE ID; empty where none was proven.
    pub fn source_id(&self) -> String {
        self.text("source.spiffe_id")
    }

    /// The SPIFFE ID of the called; empty where none was proven.
    pub fn destination_id(&self) -> String {
        self.text("destination.spiffe_id")
    }

    /// Whether the wire was mutual TLS.
    pub fn tls(&self) -> bool {
        self.get("tls").and_then(Value::as_bool).unwrap_or_default()
    }

    /// How often it was sent.
    pub fn attempts(&self) -> u64 {
        self.number("attempts")
    }
}

impl std::fmt::Display for AccessRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_among_other_lines() {
        let text = concat!(
            "starting\n{\"kind\":\"request\",\"direction\":\"inbound\",\"status\":200,\"attempts\":2,\"tls\":true,",
            "\"source\":{\"spiffe_id\":\"spiffe://a/b\"},\"destination\":{}}\n{\"level\":\"info\"}\n{\"kind\":\"requ",
        );
        let records = AccessRecord::all(text);
        assert_eq!(records.len(), 1);
        let record = &records[0];
        assert_eq!(
            (record.status(), record.attempts(), record.tls()),
            (200, 2, true)
        );
        assert_eq!(record.source_id(), "spiffe://a/b");
        assert_eq!(record.destination_id(), "");
    }
}
