//! Converts MessagePack of any type to JSON, for the `value` of a vector.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

struct Diagnosed(Value);

struct DiagnosedVisitor;

impl<'de> Visitor<'de> for DiagnosedVisitor {
    type Value = Diagnosed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any MessagePack value that the messages use")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Diagnosed, E> {
        Ok(Diagnosed(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Diagnosed, E> {
        Ok(Diagnosed(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Diagnosed, E> {
        Ok(Diagnosed(value.into()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Diagnosed, E> {
        Ok(Diagnosed(json!({ "$bytes": hex::encode(value) })))
    }

    fn visit_unit<E>(self) -> Result<Diagnosed, E> {
        Ok(Diagnosed(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Diagnosed, A::Error> {
        let mut list = Vec::new();
        while let Some(Diagnosed(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Diagnosed(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Diagnosed, A::Error> {
        let mut map = Map::new();
        while let Some((name, Diagnosed(value))) = entries.next_entry::<String, Diagnosed>()? {
            map.insert(name, value);
        }
        Ok(Diagnosed(map.into()))
    }
}

impl<'de> Deserialize<'de> for Diagnosed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DiagnosedVisitor)
    }
}

/// Converts `bytes` to JSON.
pub fn diagnose(bytes: &[u8]) -> Value {
    dormouse_protocol::decode::<Diagnosed>(bytes).expect("the samples are valid").0
}
