//! Saved state that somebody tampered with.

use crate::input::Input;
use ciborium::Value;
use saved_state::Part;

/// Larger parts are memory, which takes long to be taken apart.
const LARGE: usize = 0x4000;

/// Changes something in one part: a value in its place, or bytes of it.
pub(crate) fn tamper(input: &mut Input<'_>, parts: &mut Vec<Part>) {
    let index = input.below(parts.len().max(1) as u64) as usize;
    let Some(part) = parts.get_mut(index) else { return };
    match input.u8() & 0xf {
        0 => {
            let at = input.below(part.payload.len().max(1) as u64) as usize;
            if let Some(byte) = part.payload.get_mut(at) {
                *byte = input.u8();
            }
        }
        1 => part.payload.truncate(input.below(part.payload.len() as u64 + 1) as usize),
        2 => drop(parts.remove(index)),
        _ if part.payload.len() > LARGE => {}
        _ => {
            let Ok(mut value) = ciborium::from_reader::<Value, _>(part.payload.as_slice()) else {
                return;
            };
            let mut place = input.below(places(&value) as u64) as usize;
            change(&mut value, &mut place, input);
            part.payload.clear();
            ciborium::into_writer(&value, &mut part.payload).expect("memory");
        }
    }
}

/// Values in a value: itself, if it can be changed, and those inside.
fn places(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(places).sum::<usize>(),
        Value::Map(values) => values.iter().map(|(_, value)| places(value)).sum(),
        _ => 1,
    }
}

/// Changes the value at a place, counted as [`places`] does.
fn change(value: &mut Value, place: &mut usize, input: &mut Input<'_>) {
    if let Value::Map(values) = value {
        for (_, value) in values {
            let count = places(value);
            if *place < count {
                return change(value, place, input);
            }
            *place -= count;
        }
        return;
    }
    if *place == 0 {
        return replace(value, input);
    }
    *place -= 1;
    if let Value::Array(values) = value {
        for value in values {
            let count = places(value);
            if *place < count {
                return change(value, place, input);
            }
            *place -= count;
        }
    }
}

fn replace(value: &mut Value, input: &mut Input<'_>) {
    match value {
        Value::Array(values) if input.flag() => {
            for _ in 0..input.u8() {
                values.extend(values.first().cloned());
            }
        }
        Value::Array(values) => values.truncate(input.below(values.len() as u64 + 1) as usize),
        Value::Bool(bit) => *bit = !*bit,
        Value::Text(text) => *text = String::from_utf8_lossy(input.some(16)).into_owned(),
        Value::Bytes(bytes) => *bytes = input.some(64).to_vec(),
        other => {
            let number = input.number();
            *other = match input.u8() {
                0..=0xdf => Value::Integer(number.into()),
                0xe0..=0xef => Value::Null,
                _ => Value::Integer((number as i64).wrapping_neg().into()),
            };
        }
    }
}
