//! What is wrong with a field, and what stands for an empty one.

use crate::ParseIdentityError;

/// Why an entry is no workload or service: the field and what is wrong with it.
pub(super) struct BadField {
    pub(super) field: &'static str,
    pub(super) problem: String,
}

impl From<ParseIdentityError> for BadField {
    fn from(error: ParseIdentityError) -> Self {
        Self {
            field: "serviceAccount",
            problem: error.to_string(),
        }
    }
}

pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}
