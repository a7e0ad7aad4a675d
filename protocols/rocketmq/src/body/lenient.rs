//! Readers for what clients write instead of what was meant.
//!
//! The C++ client writes enums as ordinals and 64-bit numbers in quotes; Java writes enum names; any of them may
//! write `null` for a value it does not have.

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// Any scalar, before it is known what it stands for. Lists and objects are refused at their first byte: nothing of
/// them is buffered.
enum Scalar {
    Integer(i64),
    Boolean(bool),
    Text(String),
    Null,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;

        impl Visitor<'_> for AnyScalar {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, boolean, string or null")
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                i64::try_from(value).map(Scalar::Integer).map_err(E::custom)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Boolean(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
        }

        deserializer.deserialize_any(AnyScalar)
    }
}

/// An integer, also in quotes; 0 for `null`.
pub(super) fn integer<'de, D: Deserializer<'de>, T: TryFrom<i64>>(deserializer: D) -> Result<T, D::Error> {
    let value = match Scalar::deserialize(deserializer)? {
        Scalar::Integer(value) => Some(value),
        Scalar::Text(text) => text.parse().ok(),
        Scalar::Null => Some(0),
        Scalar::Boolean(_) => None,
    };
    value.and_then(|value| T::try_from(value).ok()).ok_or(D::Error::custom("an integer out of range"))
}

/// A boolean, also in quotes or as 0 or 1; false for `null`.
pub(super) fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Boolean(value) => Ok(value),
        Scalar::Integer(value @ 0..=1) => Ok(value == 1),
        Scalar::Text(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Scalar::Text(text) if text.is_empty() || text.eq_ignore_ascii_case("false") => Ok(false),
        Scalar::Null => Ok(false),
        Scalar::Integer(_) | Scalar::Text(_) => Err(D::Error::custom("neither true nor false")),
    }
}

/// The default for `null`.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A name of `names`, or its place among them, also in quotes.
pub(super) fn name_or_ordinal<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    names: &[(&'static str, T)],
) -> Result<T, D::Error> {
    let by_ordinal = |ordinal: i64| names.get(usize::try_from(ordinal).ok()?).map(|&(_, value)| value);
    let by_name = |name: &str| names.iter().find(|(known, _)| *known == name).map(|&(_, value)| value);
    let value = match Scalar::deserialize(deserializer)? {
        Scalar::Integer(ordinal) => by_ordinal(ordinal),
        Scalar::Text(text) => by_name(&text).or_else(|| by_ordinal(text.parse().ok()?)),
        Scalar::Boolean(_) | Scalar::Null => None,
    };
    value.ok_or(D::Error::custom("an unknown name or ordinal"))
}

/// A list of at most `MAX` items; none for `null`.
pub(super) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format_args!("a list of more than {MAX} items")));
                }
                list.push(item);
            }
            Ok(list)
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }
    }

    deserializer.deserialize_any(Items::<T, MAX>(PhantomData))
}

/// Declares an enum of names that also go by their ordinals: `Variant = "NAME"`, in Apache's order.
macro_rules! named {
    ($( $(#[$meta:meta])* pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $wire:literal, )* } )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
        pub enum $name { $( $(#[$variant_meta])* #[serde(rename = $wire)] $variant, )* }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::body::lenient::name_or_ordinal(deserializer, &[$( ($wire, Self::$variant), )*])
            }
        }
    )*};
}
pub(super) use named;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, PartialEq, Debug)]
    struct Sample {
        #[serde(default, deserialize_with = "integer")]
        number: i32,
        #[serde(default, deserialize_with = "boolean")]
        flag: bool,
        #[serde(default, deserialize_with = "list::<_, _, 2>")]
        list: Vec<u8>,
    }

    fn read(json: &str) -> Option<(i32, bool, usize)> {
        serde_json::from_str::<Sample>(json)
            .ok()
            .map(|sample| (sample.number, sample.flag, sample.list.len()))
    }

    #[test]
    fn numbers_and_booleans_may_stand_in_quotes_or_be_null() {
        assert_eq!(read(r#"{"number":"-7","flag":"TRUE"}"#), Some((-7, true, 0)));
        assert_eq!(read(r#"{"number":null,"flag":null,"list":null}"#), Some((0, false, 0)));
        assert_eq!(read(r#"{"number":7,"flag":1,"list":[1,2]}"#), Some((7, true, 2)));
        assert_eq!(read("{}"), Some((0, false, 0)));
    }

    #[test]
    fn what_is_no_such_value_is_refused() {
        for json in [
            r#"{"number":2147483648}"#,
            r#"{"number":1e400}"#,
            r#"{"number":99999999999999999999999}"#,
            r#"{"number":true}"#,
            r#"{"number":""}"#,
            r#"{"number":[1]}"#,
            r#"{"flag":2}"#,
            r#"{"flag":"yes"}"#,
            r#"{"list":[1,2,3]}"#,
            r#"{"list":7}"#,
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
