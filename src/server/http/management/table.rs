//! Field tables as JSON.
//!
//! Owns: what each field type becomes. Promises: names and values as RabbitMQ shows them; bytes that are no text become text with
//! marks, never an error. Does not know: what a table means.

use dassie_amqp::table::{RawArray, RawTable, Value as Field};
use serde_json::{Map, Value};

/// A table, content only; bytes that are none are an empty object.
pub(super) fn object(content: &[u8]) -> Value {
    Value::Object(RawTable::parse(content).map_or_else(|_| Map::new(), members))
}

fn members(table: RawTable<'_>) -> Map<String, Value> {
    table.iter().map(|(name, value)| (name.to_owned(), json(value))).collect()
}

/// A table of a message.
pub(super) fn of(table: RawTable<'_>) -> Value {
    Value::Object(members(table))
}

fn array(array: RawArray<'_>) -> Value {
    array.iter().map(json).collect()
}

fn json(field: Field<'_>) -> Value {
    match field {
        Field::Bool(flag) => flag.into(),
        Field::F32(number) => f64::from(number).into(),
        Field::F64(number) => number.into(),
        Field::Decimal { scale, value } => (f64::from(value) / 10_f64.powi(i32::from(scale))).into(),
        Field::Timestamp(seconds) => seconds.into(),
        Field::LongStr(bytes) | Field::Bytes(bytes) => String::from_utf8_lossy(bytes).into(),
        Field::Array(items) => array(items),
        Field::Table(table) => of(table),
        Field::Void => Value::Null,
        number => number.as_integer().map_or(Value::Null, Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_amqp::table::TableBuilder;

    #[test]
    fn every_type_has_a_form_in_json() {
        let mut table = TableBuilder::new();
        table.put("b", true).put("n", 5_i64).put("t", "text").put("f", 1.5_f64).put_table("in", |inner| {
            inner.put("x", Field::Void);
        });
        let raw = table.as_table().unwrap();
        assert_eq!(of(raw), serde_json::json!({"b": true, "n": 5, "t": "text", "f": 1.5, "in": {"x": null}}));
        assert_eq!(object(b"\x01"), serde_json::json!({}));
    }
}
