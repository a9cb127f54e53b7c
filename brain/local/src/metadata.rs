//! Metadata: a few short texts by name, on agents, environments, sessions and work items.

use serde_json::Value;

use crate::reply::{ApiError, Fields};

const MAX_METADATA_PAIRS: usize = 16;
/// Longest key and value of metadata, in characters.
const MAX_METADATA_KEY: usize = 64;
const MAX_METADATA_VALUE: usize = 512;

/// Merges a patch: null or the empty text deletes a key.
pub(crate) fn patch_metadata(metadata: &mut Fields, patch: &Fields) -> Result<(), ApiError> {
    let mut merged = metadata.clone();
    for (key, value) in patch {
        match value {
            Value::Null => {
                merged.remove(key);
            }
            Value::String(text) if text.is_empty() => {
                merged.remove(key);
            }
            Value::String(text) => {
                if key.chars().count() > MAX_METADATA_KEY
                    || text.chars().count() > MAX_METADATA_VALUE
                {
                    let message = format!("metadata: key or value of {key:.64?} is too long");
                    return Err(ApiError::invalid(message));
                }
                merged.insert(key.clone(), value.clone());
            }
            _ => return Err(ApiError::invalid(format!("metadata.{key:.64}: expected a text"))),
        }
    }
    if merged.len() > MAX_METADATA_PAIRS {
        return Err(ApiError::invalid(format!("metadata: at most {MAX_METADATA_PAIRS} pairs")));
    }
    *metadata = merged;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn metadata_is_merged_and_bounded() {
        let mut metadata = Map::new();
        let patch = |value: Value| value.as_object().unwrap().clone();
        patch_metadata(&mut metadata, &patch(json!({"a": "1", "b": "2"}))).unwrap();
        patch_metadata(&mut metadata, &patch(json!({"a": null, "b": "", "c": "3"}))).unwrap();
        assert_eq!(Value::Object(metadata.clone()), json!({"c": "3"}));
        assert!(patch_metadata(&mut metadata, &patch(json!({"n": 1}))).is_err());
        let long = "x".repeat(MAX_METADATA_VALUE + 1);
        assert!(patch_metadata(&mut metadata, &patch(json!({"n": long}))).is_err());
    }
}
