//! Cedar policies, as an operator writes them.

use election_agent::auth::policy::Policies;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // What is wrong with it is the operator's affair; that there is an answer is ours.
    if let Err(mistakes) = Policies::new([("fuzzed.cedar", text)]) {
        assert!(mistakes.iter().all(|mistake| !mistake.is_empty()));
        assert!(!mistakes.is_empty());
    }
}
