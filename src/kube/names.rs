//! Validates names of Kubernetes objects ([Object names and
//! IDs](https://kubernetes.io/docs/concepts/overview/working-with-objects/names/)).

use election_core::types::Invalid;

/// What error texts say about the form of a label.
pub(crate) const LABEL: &str = "give a DNS label, 1 to 63 lower-case letters, digits and dashes that neither begins nor ends with a dash";

const SUBDOMAIN: &str = "give a DNS name, up to 253 lower-case letters, digits, dashes and dots, each part of \
     which neither begins nor ends with a dash";

/// Returns whether the name is a valid namespace: a DNS label of RFC 1123.
pub(crate) fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_part(name)
}

/// Returns whether the name is a valid Deployment or pod name: labels of any length, separated by dots. Most pod names
/// exceed the length of a label, and Deployment names may.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_part)
}

fn is_part(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
}

/// Validates a namespace.
///
/// # Errors
/// [`Invalid`] names the field and states the form of a namespace.
pub(super) fn namespace(name: &str) -> Result<(), Invalid> {
    valid("namespace", name, is_label, LABEL)
}

/// Validates the name of a Deployment or pod.
///
/// # Errors
/// [`Invalid`] names the field and states the form of such a name.
pub(super) fn object(field: &str, name: &str) -> Result<(), Invalid> {
    valid(field, name, is_subdomain, SUBDOMAIN)
}

fn valid(field: &str, name: &str, is: fn(&str) -> bool, advice: &str) -> Result<(), Invalid> {
    match name {
        "" => Err(Invalid(format!("`{field}` is empty: {advice}"))),
        name if is(name) => Ok(()),
        _ => Err(Invalid(format!(
            "`{field}` is no name in Kubernetes: {advice}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kubernetes_takes() {
        let (longest, longest_object) = ("a".repeat(63), "a".repeat(253));
        for label in ["a", "0", "shop", "team-a", "a--b", &longest] {
            assert!(
                namespace(label).is_ok() && object("pod", label).is_ok(),
                "{label}"
            );
        }
        for name in ["web.v2", "web-7d4b9c6f5d-x2x7p.east", &longest_object] {
            assert!(object("deployment", name).is_ok(), "{name}");
            assert!(namespace(name).is_err(), "{name}");
        }
        let (too_long, too_long_object) = ("a".repeat(64), "a".repeat(254));
        assert!(namespace(&too_long).is_err());
        for name in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a/b",
            "ä",
            "a b",
            ".",
            "a..b",
            "a.-b",
            &too_long_object,
        ] {
            assert!(namespace(name).is_err(), "{name}");
            let error = object("pod_name", name).expect_err(name).to_string();
            assert!(error.starts_with("`pod_name` is "), "{error}");
        }
    }
}
