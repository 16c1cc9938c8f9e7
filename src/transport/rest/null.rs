//! Members that may be left out, and may as well be `null`, as many serializers write what is not set.

use serde::{Deserialize, Deserializer};

use super::whole;

/// Reads a value; `null` is the default.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads an `i64`; `null` is 0.
pub(super) fn or_signed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number: Option<Signed> = Option::deserialize(deserializer)?;
    Ok(number.map_or(0, |Signed(number)| number))
}

/// Reads a `u64`; `null` is 0.
pub(super) fn or_unsigned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number: Option<Unsigned> = Option::deserialize(deserializer)?;
    Ok(number.map_or(0, |Unsigned(number)| number))
}

#[derive(Deserialize)]
struct Signed(#[serde(deserialize_with = "whole::signed")] i64);

#[derive(Deserialize)]
struct Unsigned(#[serde(deserialize_with = "whole::unsigned")] u64);
