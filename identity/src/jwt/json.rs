//! JSON objects in which no member stands twice.
//!
//! Readers differ in which of two members of one name they take, and a token or bundle that means two things to two
//! readers is an attack. RFC 7515 section 4 and RFC 7519 section 4 allow refusing it; here it is refused at every depth.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text is not one JSON object without repeated members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, more than one value, a member twice, or nested too deep.
    #[error("{0}")]
    Syntax(String),
    /// Another value than an object.
    #[error("not a JSON object")]
    NotAnObject,
}

/// Parses one object. The caller has bounded the length; serde_json bounds the depth.
pub(crate) fn parse_object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match serde_json::from_slice(text) {
        Ok(Strict(Value::Object(members))) => Ok(members),
        Ok(_) => Err(JsonError::NotAnObject),
        Err(error) => Err(JsonError::Syntax(error.to_string())),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = sequence.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.contains_key(&name) {
                let name = super::error::cut(&name);
                let message = format_args!("the member {name:?} is there twice");
                return Err(de::Error::custom(message));
            }
            let Strict(value) = map.next_value()?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_serde_json_reads_it() {
        let text = r#"{"a":[1,-2,2.5,null,true,{"b":"c"}],"big":18446744073709551615,"e":{}}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            Value::Object(parse_object(text.as_bytes()).unwrap()),
            expected
        );
    }

    #[test]
    fn what_is_not_one_object_of_unique_members_is_refused() {
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        let rows = [
            ("", "EOF"),
            ("[]", "not a JSON object"),
            ("1", "not a JSON object"),
            ("{} {}", "trailing"),
            (r#"{"a":1,"a":1}"#, "twice"),
            (r#"{"a":1,"\u0061":2}"#, "twice"),
            (r#"{"x":[{"a":{"b":1,"b":2}}]}"#, "twice"),
            (r#"{"a":1e999}"#, "out of range"),
            (r#"{"a":NaN}"#, "expected"),
            (&deep, "recursion limit"),
        ];
        for (text, reason) in rows {
            let error = parse_object(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:.40}: {error}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_err());
    }
}
