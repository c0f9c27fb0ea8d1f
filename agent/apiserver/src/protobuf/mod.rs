//! Request bodies in Kubernetes' protobuf encoding, for the kinds that kubectl sends so.
//!
//! kubectl's typed commands (`create namespace`, `create configmap`, `drain`, ...) write protobuf whatever the
//! server says it accepts. A body is decoded by a table of messages into the same JSON value that a JSON body
//! gives. A field that the table lacks refuses the body: nothing is dropped in silence.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

mod schema;
mod wire;

use schema::{Field, Message, Shape};
use wire::{Reader, Wire};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Every body begins with this.
const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused.
const MAX_DEPTH: usize = 32;

/// Why a body does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtobufError {
    /// It is not what it says it is.
    #[error("malformed protobuf body: {0}")]
    Malformed(&'static str),
    /// The table lacks this kind.
    #[error("{api_version}, Kind={kind} is not read from protobuf")]
    UnknownKind {
        /// `apiVersion` of the body.
        api_version: String,
        /// `kind` of the body.
        kind: String,
    },
    /// The table lacks this field.
    #[error("field {number} of {message} is not read from protobuf, send JSON")]
    UnknownField {
        /// The message.
        message: &'static str,
        /// The field's number.
        number: u64,
    },
}

/// Decodes a body.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = body
        .strip_prefix(MAGIC)
        .ok_or(ProtobufError::Malformed("no k8s prefix"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader::new(envelope);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(type_meta)) => {
                let mut reader = Reader::new(type_meta);
                while let Some((number, wire)) = reader.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let message = schema::of(&api_version, &kind);
    let Some(message) = message else {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    };
    let mut object = decode_message(message, raw, 0)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn utf8(bytes: &[u8]) -> Result<String, ProtobufError> {
    match str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_not_text) => Err(ProtobufError::Malformed("string is not UTF-8")),
    }
}

fn decode_message(
    message: &'static Message,
    bytes: &[u8],
    depth: usize,
) -> Result<Map<String, Value>, ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("nested too deeply"));
    }
    let mut object = Map::new();
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        let field = message.fields.iter().find(|field| field.number == number);
        let unknown = ProtobufError::UnknownField {
            message: message.name,
            number,
        };
        decode_field(field.ok_or(unknown)?, wire, &mut object, depth)?;
    }
    Ok(object)
}

/// Go writes zero values of plain fields; they mean "not given", as in JSON's `omitempty`.
fn decode_field(
    field: &Field,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let value = match (field.shape, wire) {
        (Shape::Skip, _) => return Ok(()),
        (Shape::Text, Wire::Bytes(b"")) | (Shape::Int, Wire::Varint(0)) => return Ok(()),
        (Shape::Bool, Wire::Varint(0)) => return Ok(()),
        (Shape::Text | Shape::Texts, Wire::Bytes(bytes)) => utf8(bytes)?.into(),
        (Shape::Int | Shape::OptInt, Wire::Varint(number)) => number.cast_signed().into(),
        (Shape::Bool | Shape::OptBool, Wire::Varint(number)) => (number != 0).into(),
        (Shape::Time, Wire::Bytes(bytes)) => match decode_time(bytes)? {
            Some(time) => time,
            None => return Ok(()),
        },
        (Shape::IntOrString, Wire::Bytes(bytes)) => decode_int_or_string(bytes)?,
        (Shape::Message(message) | Shape::Messages(message), Wire::Bytes(bytes)) => {
            Value::Object(decode_message(message, bytes, depth + 1)?)
        }
        (Shape::TextMap | Shape::BytesMap, Wire::Bytes(bytes)) => {
            let (key, value) = decode_entry(bytes)?;
            let value = match field.shape {
                Shape::BytesMap => STANDARD.encode(value),
                _ => utf8(value)?,
            };
            let entries = object.entry(field.name).or_insert_with(|| json!({}));
            if let Some(entries) = entries.as_object_mut() {
                entries.insert(key, value.into());
            }
            return Ok(());
        }
        _ => return Err(ProtobufError::Malformed("wrong wire type")),
    };
    if matches!(field.shape, Shape::Texts | Shape::Messages(_)) {
        let list = object.entry(field.name).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(value);
        }
    } else {
        object.insert(field.name.to_owned(), value);
    }
    Ok(())
}

fn decode_entry(bytes: &[u8]) -> Result<(String, &[u8]), ProtobufError> {
    let (mut key, mut value) = (String::new(), &[][..]);
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = utf8(bytes)?,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => return Err(ProtobufError::Malformed("map entry")),
        }
    }
    Ok((key, value))
}

fn decode_time(bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let mut seconds = 0;
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Varint(value)) = (number, wire) {
            seconds = value.cast_signed();
        }
    }
    if seconds == 0 {
        return Ok(None);
    }
    let time = jiff::Timestamp::from_second(seconds);
    let time = time.map_err(|_range| ProtobufError::Malformed("time out of range"))?;
    Ok(Some(crate::object::timestamp(time).into()))
}

fn decode_int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.next()? {
        match (field, wire) {
            (1, Wire::Varint(value)) => is_text = value == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = utf8(bytes)?,
            _ => return Err(ProtobufError::Malformed("IntOrString")),
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

#[cfg(test)]
mod tests;
