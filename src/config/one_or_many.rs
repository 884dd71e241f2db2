//! Fields that hold one thing or a list of things. Visitors, because untagged enums lose the line of an error.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor, value::SeqAccessDeserializer},
};

/// A string or a list of strings.
pub(super) fn strings<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    d.deserialize_any(OneOrMany::<String>(PhantomData))
}

/// A number or a list of numbers.
pub(super) fn numbers<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f32>, D::Error> {
    d.deserialize_any(OneOrMany::<f32>(PhantomData))
}

struct OneOrMany<T>(PhantomData<T>);

/// What can stand alone.
trait Single: Sized {
    const EXPECTED: &'static str;
    fn number(_: f64) -> Option<Self> {
        None
    }
    fn text(_: &str) -> Option<Self> {
        None
    }
}

impl Single for f32 {
    const EXPECTED: &'static str = "a number or a list of numbers";
    fn number(x: f64) -> Option<Self> {
        Some(x as f32)
    }
}

impl Single for String {
    const EXPECTED: &'static str = "a name or a list of names";
    fn number(x: f64) -> Option<Self> {
        Some(x.to_string()) // nodes of old exporters are often just numbered
    }
    fn text(s: &str) -> Option<Self> {
        Some(s.to_owned())
    }
}

impl<'de, T: Single + Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Vec<T>, E> {
        T::text(s).map(|v| vec![v]).ok_or_else(|| E::invalid_type(serde::de::Unexpected::Str(s), &self))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Vec<T>, E> {
        self.visit_f64(n as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Vec<T>, E> {
        self.visit_f64(n as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<Vec<T>, E> {
        T::number(x).map(|v| vec![v]).ok_or_else(|| E::invalid_type(serde::de::Unexpected::Float(x), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq))
    }
}
