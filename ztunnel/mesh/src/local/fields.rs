//! Invalid fields, and defaults of empty fields.

use crate::ParseIdentityError;

/// An invalid field of an entry, and the problem with it.
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
