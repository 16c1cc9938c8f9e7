//! Optional members that may also be `null`, which many serializers write for unset members.

use serde::{Deserialize, Deserializer};

use super::whole;

/// Deserializes a value; `null` is the default.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Deserializes an `i64`; `null` is 0.
pub(super) fn or_signed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number: Option<Signed> = Option::deserialize(deserializer)?;
    Ok(number.map_or(0, |Signed(number)| number))
}

/// Deserializes a `u64`; `null` is 0.
pub(super) fn or_unsigned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number: Option<Unsigned> = Option::deserialize(deserializer)?;
    Ok(number.map_or(0, |Unsigned(number)| number))
}

#[derive(Deserialize)]
struct Signed(#[serde(deserialize_with = "whole::signed")] i64);

#[derive(Deserialize)]
struct Unsigned(#[serde(deserialize_with = "whole::unsigned")] u64);
