//! Who may do what.

use std::path::PathBuf;

use super::{Setting, setting, values::Reader};
use crate::auth::policy::Directory;

pub(super) const SETTINGS: &[Setting] = &[setting(
    "EA_AUTH_POLICY_DIR",
    "",
    "directory of Cedar policies (`*.cedar`) that say who may do what, read again when it changes; none: whoever is authenticated may read everything, and act only for candidates that equal its name or start with its name and `/`",
)];

/// Who may do what.
#[derive(Debug, Clone)]
pub struct Auth {
    /// Policies in place of the default ones; valid when the configuration was read.
    pub policies: Option<Directory>,
}

impl Auth {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let directory = reader.raw("EA_AUTH_POLICY_DIR");
        let policies = (!directory.is_empty()).then(|| Directory(PathBuf::from(directory)));
        if let Some(policies) = &policies {
            reader.files(policies);
        }
        Self { policies }
    }
}
