//! Whole numbers in JSON: `1000.0` is the same number as `1000`, and an `integer` in JSON Schema. Clients in
//! languages with a single number type write the former, which serde's own integers reject.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// The upper limit below which an `f64` represents every whole number.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Deserializes an `i64`.
pub(super) fn signed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    deserializer.deserialize_i64(Whole(PhantomData))
}

/// Deserializes a `u64`.
pub(super) fn unsigned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_u64(Whole(PhantomData))
}

struct Whole<N>(PhantomData<N>);

impl<N: TryFrom<i128>> Visitor<'_> for Whole<N> {
    type Value = N;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number in range")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<N, E> {
        N::try_from(number.into()).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<N, E> {
        N::try_from(number.into())
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<N, E> {
        let refused = E::invalid_value(Unexpected::Float(number), &self);
        if number.fract() != 0.0 || number.abs() >= EXACT {
            return Err(refused);
        }
        // The number is whole and in range: the conversion is lossless.
        N::try_from(number as i128).map_err(|_| refused)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Numbers {
        #[serde(deserialize_with = "super::signed")]
        signed: i64,
        #[serde(deserialize_with = "super::unsigned")]
        unsigned: u64,
    }

    fn read(signed: &str, unsigned: &str) -> Result<Numbers, serde_json::Error> {
        serde_json::from_str(&format!(
            r#"{{"signed": {signed}, "unsigned": {unsigned}}}"#
        ))
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (signed, unsigned) in [("-1000", "1000"), ("-1000.0", "1000.0"), ("-1e3", "1e3")] {
            let read = read(signed, unsigned).expect("numbers");
            let numbers = Numbers {
                signed: -1_000,
                unsigned: 1_000,
            };
            assert_eq!(read, numbers);
        }
        let largest = read("0", "9007199254740991.0").expect("numbers");
        assert_eq!(largest.unsigned, (1 << 53) - 1);
        let exact = read("0", "18446744073709551615").expect("numbers");
        assert_eq!(exact.unsigned, u64::MAX);
    }

    #[test]
    fn what_is_not_whole_or_not_in_range_is_refused() {
        for (signed, unsigned) in [
            ("0.5", "0"),
            ("0", "0.5"),
            ("0", "-1"),
            ("0", "-1.0"),
            ("9007199254740992.0", "0"),
            ("9223372036854775808", "0"),
            ("1e300", "0"),
            ("\"1\"", "0"),
            ("null", "0"),
            ("true", "0"),
        ] {
            let error = read(signed, unsigned).expect_err("refused").to_string();
            assert!(error.contains("a whole number"), "{error}");
        }
    }
}
