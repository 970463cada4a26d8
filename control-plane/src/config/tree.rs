//! A document as it is written, to find which field stands at a place.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::fmt;

/// A node of a document of any kind.
#[derive(Debug)]
pub(super) enum Node {
    Scalar(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// Finds fields by their place, a line and a column.
pub(super) trait Find {
    /// The path of the last field that begins at or before a place.
    fn field_at(&self, place: (u64, u64)) -> String;

    /// The path of the outermost value that begins at a place: a mapping begins where its first field does.
    fn value_at(&self, place: (u64, u64)) -> Option<String>;

    /// Visits each key and value with its path, in the order of the text.
    fn visit(&self, path: &str, see: &mut dyn FnMut(&str, Part, Location));
}

/// What a place is the beginning of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

impl Find for Spanned<Node> {
    fn field_at(&self, place: (u64, u64)) -> String {
        let mut found = String::new();
        self.visit("", &mut |path, _, at| {
            if (at.line(), at.column()) <= place {
                path.clone_into(&mut found);
            }
        });
        found
    }

    fn value_at(&self, place: (u64, u64)) -> Option<String> {
        let mut found = None;
        self.visit("", &mut |path, part, at| {
            if part == Part::Value && (at.line(), at.column()) == place && found.is_none() {
                found = Some(path.to_owned());
            }
        });
        found
    }

    fn visit(&self, path: &str, see: &mut dyn FnMut(&str, Part, Location)) {
        see(path, Part::Value, self.referenced);
        match &self.value {
            Node::Scalar(_) => {}
            Node::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.visit(&format!("{path}[{index}]"), see);
                }
            }
            Node::Map(fields) => {
                for (key, value) in fields {
                    let path = join(path, &key.value);
                    see(&path, Part::Key, key.referenced);
                    value.visit(&path, see);
                }
            }
        }
    }
}

/// The path of a field in its parent.
pub(super) fn join(parent: &str, field: &str) -> String {
    if parent.is_empty() {
        field.to_owned()
    } else {
        format!("{parent}.{field}")
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML node")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(String::new()))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(String::new()))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Node::Map(map))
    }
}
