//! Questions for tests and for fuzzing, as applications ask them.

/// What stands between the id and the question: that recursion is wanted, and one question.
const FLAGS_AND_COUNTS: [u8; 10] = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
/// The type of a question for IPv4 addresses.
#[cfg(test)]
const A: u16 = 1;

/// A name as it is sent: each label behind its length, and an empty one at the end.
#[cfg(test)]
pub(super) fn name<L: AsRef<[u8]>>(labels: impl IntoIterator<Item = L>) -> Vec<u8> {
    let mut name = Vec::new();
    for label in labels {
        let label = label.as_ref();
        name.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        name.extend(label);
    }
    name.push(0);
    name
}

/// A question for records of a type and of the class IN.
#[cfg(test)]
pub(super) fn question(text: &str, kind: u16) -> Vec<u8> {
    let mut question = name(text.split('.'));
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    question
}

/// A query that wants recursion, with this question.
pub(super) fn asking(id: u16, question: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &FLAGS_AND_COUNTS, question].concat()
}

/// A query for IPv4 addresses.
#[cfg(test)]
pub(super) fn query(id: u16, name: &str) -> Vec<u8> {
    asking(id, &question(name, A))
}
