//! Cedar policies, as an operator writes them.

use std::str::FromStr as _;

use cedar_policy::PolicySet as Policies;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // What is wrong with it is the operator's affair; that there is an answer is ours.
    if let Err(mistakes) = Policies::from_str(text) {
        assert!(!mistakes.to_string().is_empty());
    }
}
